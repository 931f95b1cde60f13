//go:build linux || darwin

package health

import "syscall"

func diskFree(dir string) (free, all uint64, err error) {
	var v syscall.Statfs_t
	if err := syscall.Statfs(dir, &v); err != nil {
		return 0, 0, err
	}
	return v.Bavail * uint64(v.Bsize), v.Blocks * uint64(v.Bsize), nil
}
