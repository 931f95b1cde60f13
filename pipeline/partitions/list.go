package partitions

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"gocloud.dev/blob/driver"
)

// page collects the objects of one page, in the order of their keys.
type page struct {
	ctx    context.Context // ends the walk
	root   string
	prefix string
	after  string // the last key of the page before
	size   int    // 0: no bound
	flat   bool   // a directory behind the prefix is told and not gone into
	list   driver.ListPage
}

// errFull ends a walk.
var errFull = errors.New("the page is full")

// ListPaged goes only into directories that can have keys of the page.
func (d *directory) ListPaged(ctx context.Context, o *driver.ListOptions) (*driver.ListPage, error) {
	if o.Delimiter != "" && o.Delimiter != "/" {
		return nil, errUnimplemented
	}
	if o.BeforeList != nil {
		if err := o.BeforeList(func(any) bool { return false }); err != nil {
			return nil, err
		}
	}
	l := &page{ctx: ctx, root: d.root, prefix: o.Prefix, after: string(o.PageToken), size: o.PageSize, flat: o.Delimiter != ""}
	start := o.Prefix[:strings.LastIndexByte(o.Prefix, '/')+1]
	if start != "" && !filepath.IsLocal(filepath.FromSlash(start)) {
		return nil, errKey
	}
	err := l.walk(start)
	switch {
	case errors.Is(err, errFull):
		l.list.NextPageToken = []byte(l.list.Objects[len(l.list.Objects)-1].Key)
	case err != nil:
		return nil, err
	}
	return &l.list, nil
}

// walk adds what is in a directory, which is named by the beginning that its keys have in common.
func (l *page) walk(begin string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	files, err := os.ReadDir(filepath.Join(l.root, filepath.FromSlash(begin)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // or what has the name is an object
	}
	if err != nil {
		return err
	}
	// By name they are sorted already, but keys go on behind a directory's name, with a slash.
	if slices.ContainsFunc(files, fs.DirEntry.IsDir) {
		slices.SortFunc(files, func(a, b fs.DirEntry) int { return cmp.Compare(keyOf("", a), keyOf("", b)) })
	}
	for _, f := range files {
		key := keyOf(begin, f)
		switch {
		case f.IsDir() && l.flat && strings.HasPrefix(key, l.prefix):
			if key > l.after {
				err = l.put(&driver.ListObject{Key: key, IsDir: true})
			}
		case f.IsDir():
			possible := strings.HasPrefix(key, l.prefix) || strings.HasPrefix(l.prefix, key)
			done := key < l.after && !strings.HasPrefix(l.after, key)
			if possible && !done {
				err = l.walk(key)
			}
		case f.Type().IsRegular() && strings.HasPrefix(key, l.prefix) && key > l.after && !strings.HasSuffix(key, unfinished):
			err = l.add(key, f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func keyOf(begin string, f fs.DirEntry) string {
	if f.IsDir() {
		return begin + f.Name() + "/"
	}
	return begin + f.Name()
}

func (l *page) add(key string, f fs.DirEntry) error {
	info, err := f.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was deleted just now
	}
	if err != nil {
		return err
	}
	return l.put(&driver.ListObject{Key: key, ModTime: info.ModTime(), Size: info.Size()})
}

func (l *page) put(o *driver.ListObject) error {
	if l.size > 0 && len(l.list.Objects) == l.size {
		return errFull
	}
	l.list.Objects = append(l.list.Objects, o)
	return nil
}
