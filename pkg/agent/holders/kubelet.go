package holders

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// readKubeletVolumes finds the raw block volumes of the kubelet. As long as the pod may use one, the kubelet keeps a
// link below the pod's folder, and a device or link below the plugin's.
func (s *System) readKubeletVolumes(kubeletDir string) {
	for _, pattern := range []string{
		"pods/*/volumeDevices/*",
		"plugins/*/volumeDevices",
		"plugins/kubernetes.io/*/volumeDevices",
	} {
		folders, err := filepath.Glob(filepath.Join(kubeletDir, pattern))
		if err != nil {
			s.addUnchecked("raw block volumes of the kubelet cannot be listed: %v", err)
		}
		for _, folder := range folders {
			s.readKubeletVolumesBelow(folder)
		}
	}
}

func (s *System) readKubeletVolumesBelow(folder string) {
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		if device, err := numberOf(path); err == nil {
			s.add(device, Holder{Kind: Published, Name: path})
		}
		return nil
	})
	if err != nil {
		s.addUnchecked("raw block volumes of the kubelet cannot be listed: %v", err)
	}
}
