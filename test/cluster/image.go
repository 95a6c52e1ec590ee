package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// Images that every node has from the start; there is no registry.
const (
	// BusyboxImage is a shell with the usual programs.
	BusyboxImage = "docker.io/library/busybox:stable"
	pauseImage   = "berth.local/pause:1"
)

// descriptor, and the maps below, are the parts of the OCI image layout that
// containerd reads.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// layout collects the blobs of an OCI image layout.
type layout struct {
	blobs     map[string][]byte
	manifests []descriptor
}

func (l *layout) add(mediaType string, blob []byte) descriptor {
	sum := sha256.Sum256(blob)
	digest := hex.EncodeToString(sum[:])
	l.blobs[digest] = blob
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(blob)}
}

func (l *layout) addJSON(mediaType string, value any) (descriptor, error) {
	blob, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, err
	}
	return l.add(mediaType, blob), nil
}

// addImage adds an image of one layer.
func (l *layout) addImage(name string, layer []byte, command ...string) error {
	files := l.add("application/vnd.oci.image.layer.v1.tar", layer)
	config, err := l.addJSON("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Cmd": command, "Env": []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{files.Digest}},
	})
	if err != nil {
		return err
	}
	manifest, err := l.addJSON("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        config,
		"layers":        []descriptor{files},
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{"io.containerd.image.name": name}
	l.manifests = append(l.manifests, manifest)
	return nil
}

// write writes the layout as an archive that `ctr images import` takes.
func (l *layout) write(w io.Writer) error {
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": l.manifests})
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	if err := addFile(archive, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := addFile(archive, "index.json", 0o644, index); err != nil {
		return err
	}
	for digest, blob := range l.blobs {
		if err := addFile(archive, "blobs/sha256/"+digest, 0o644, blob); err != nil {
			return err
		}
	}
	return archive.Close()
}

func addFile(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// writeImages writes an archive with the images of every node.
func writeImages(path, bin string) error {
	l := &layout{blobs: map[string][]byte{}}
	pause, err := os.ReadFile(filepath.Join(bin, "pause"))
	if err != nil {
		return fmt.Errorf("make the pause image: %w", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := errors.Join(addFile(w, "pause", 0o755, pause), w.Close()); err != nil {
		return fmt.Errorf("make the pause image: %w", err)
	}
	if err := l.addImage(pauseImage, layer.Bytes(), "/pause"); err != nil {
		return fmt.Errorf("make the pause image: %w", err)
	}
	files, err := busyboxFiles()
	if err != nil {
		return fmt.Errorf("make the busybox image: %w", err)
	}
	if err := l.addImage(BusyboxImage, files, "sh"); err != nil {
		return fmt.Errorf("make the busybox image: %w", err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := l.write(f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Close()
}

// busyboxFiles is a root file system of busybox under all its names. Debian's busybox
// has no blkid, which the usual image has: it is this machine's.
func busyboxFiles() ([]byte, error) {
	path := staticBusybox()
	if path == "" {
		return nil, errors.New("no statically linked busybox in PATH: install busybox-static")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	names, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the programs in %s: %w", path, err)
	}
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, dir := range []struct {
		name string
		mode int64
	}{{"bin/", 0o755}, {"etc/", 0o755}, {"tmp/", 0o1777}, {"proc/", 0o755}, {"sys/", 0o755}, {"dev/", 0o755}} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir.name, Mode: dir.mode}); err != nil {
			return nil, err
		}
	}
	if err := addFile(w, "bin/busybox", 0o755, program); err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(names)) {
		if name == "busybox" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}); err != nil {
			return nil, err
		}
	}
	if err := addDynamic(w, "blkid"); err != nil {
		return nil, err
	}
	if err := addFile(w, "etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")); err != nil {
		return nil, err
	}
	return buffer.Bytes(), w.Close()
}

var libraryPath = regexp.MustCompile(`(/\S+) \(0x`)

// addDynamic adds a program of this machine as bin/name, and the libraries it is linked with.
func addDynamic(w *tar.Writer, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("list the libraries of %s: %w", path, err)
	}
	files := map[string]string{"bin/" + name: path}
	for _, match := range libraryPath.FindAllStringSubmatch(string(out), -1) {
		files[strings.TrimPrefix(match[1], "/")] = match[1]
	}
	for target, source := range files {
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if err := addFile(w, target, 0o755, content); err != nil {
			return err
		}
	}
	return nil
}
