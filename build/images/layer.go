package main

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// layer writes files as a layer: the same files give the same bytes. All belong to root, and are as old as the epoch.
// The compressor is a module, because that of the standard library may change with Go.
func layer(files map[string]*file, folders ...string) (v1.Layer, error) {
	entries := map[string]*tar.Header{}
	folder := func(name string) {
		for ; name != "/" && name != "."; name = path.Dir(name) {
			if _, ok := entries[name]; !ok {
				entries[name] = &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(name, "/") + "/", Mode: 0o755}
			}
		}
	}
	for _, name := range folders {
		folder(name)
	}
	if tmp, ok := entries["/tmp"]; ok {
		tmp.Mode = 0o1777
	}
	for name, f := range files {
		folder(path.Dir(name))
		entries[name] = header(name, f)
	}
	var buffer bytes.Buffer
	// The level exists.
	compressed, _ := gzip.NewWriterLevel(&buffer, gzip.BestCompression)
	w := tar.NewWriter(compressed)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		h := entries[name]
		h.ModTime, h.Format = time.Unix(0, 0), tar.FormatUSTAR
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(files[name].content); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := compressed.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buffer.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}

func header(name string, f *file) *tar.Header {
	h := &tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: int64(f.mode)}
	if f.link != "" {
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		return h
	}
	h.Typeflag, h.Size = tar.TypeReg, int64(len(f.content))
	return h
}

// usrLinks are the links of mergedUsr, as files.
func usrLinks() map[string]*file {
	links := map[string]*file{}
	for _, d := range mergedUsr {
		links["/"+d] = &file{link: "usr/" + d}
	}
	return links
}
