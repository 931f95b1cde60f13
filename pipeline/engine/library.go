package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
)

// LibraryEnv names the environment variable that points to libchdb.
const LibraryEnv = "KANSA_LIBCHDB"

// libraryFile is the file's name on every platform; npm's darwin packages keep the .so suffix.
const libraryFile = "libchdb.so"

// FindLibrary returns the path of libchdb: the hint if there is one, else the file KANSA_LIBCHDB names,
// else the first found beside the executable, in the build directory of the module around the working
// directory, and in the usual places of an installation. A hint or variable that points nowhere is an
// error, never a reason to look further: running another library than the one asked for would surprise.
func FindLibrary(hint string) (string, error) {
	for _, named := range []struct{ from, path string }{{"the configured path", hint}, {LibraryEnv, os.Getenv(LibraryEnv)}} {
		if named.path == "" {
			continue
		}
		info, err := os.Stat(named.path)
		if err == nil && info.IsDir() {
			return FindLibrary(filepath.Join(named.path, libraryFile))
		}
		if err != nil {
			return "", fmt.Errorf("find libchdb: %s: %w; run \"make engine\" or correct it", named.from, err)
		}
		return named.path, nil
	}
	inPackage := filepath.Join("node_modules", "@chdb", "lib-"+libraryPlatform(), libraryFile)
	var tried []string
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dir := filepath.Dir(exe)
		tried = append(tried, filepath.Join(dir, "engine", inPackage), filepath.Join(dir, libraryFile))
	}
	if root := moduleRoot(); root != "" {
		tried = append(tried, filepath.Join(root, "build", "engine", inPackage))
	}
	tried = append(tried, filepath.Join("/usr/lib/kansa", libraryFile), filepath.Join("/usr/local/lib/kansa", libraryFile))
	for _, path := range tried {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	remedy := "run \"make engine\""
	if platform := libraryPlatform(); platform != "linux-x64-gnu" { // the only package whose hash is in the lockfile
		remedy = "make engine has none for " + platform + ": set clickhouse.url to a ClickHouse server"
	}
	return "", fmt.Errorf("find libchdb: not at %s; %s, or set %s to the file", strings.Join(tried, ", "), remedy, LibraryEnv)
}

// libraryPlatform is the part of the npm package's name that says where it runs.
func libraryPlatform() string {
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64"
	}
	if runtime.GOOS == "linux" {
		return "linux-" + arch + "-gnu"
	}
	return runtime.GOOS + "-" + arch
}

// moduleRoot is the nearest directory upwards that holds a go.mod, so that tests of any package find the
// library that Make has built.
func moduleRoot() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return ""
		}
		dir = parent
	}
}

// statementFunc is the shape of every function that takes a statement with parameters.
type statementFunc func(conn uintptr, query unsafe.Pointer, queryLen uintptr, format unsafe.Pointer, formatLen uintptr,
	names, nameLens, values, valueLens unsafe.Pointer, count uintptr) uintptr

// library holds the functions of libchdb. Handles are uintptr because the memory is C's: Go's collector
// must neither move nor free it. Every result is given back with destroyResult.
type library struct {
	version             func() string
	connect             func(argc int32, argv unsafe.Pointer) *uintptr
	closeConn           func(conn *uintptr)
	query               statementFunc
	streamQuery         statementFunc
	streamFetch         func(conn, result uintptr) uintptr
	streamCancel        func(conn, result uintptr)
	insertStream        statementFunc
	insertAppend        func(stream uintptr, data unsafe.Pointer, n uintptr) int32
	insertDone          func(stream uintptr) uintptr
	insertCancel        func(stream uintptr)
	insertError         func(stream uintptr) *byte
	destroyInsert       func(stream uintptr)
	destroyResult       func(result uintptr)
	resultBuffer        func(result uintptr) *byte
	resultLength        func(result uintptr) uintptr
	resultError         func(result uintptr) *byte
	resultRows          func(result uintptr) uint64
	resultStorageRows   func(result uintptr) uint64
	resultStorageBytes  func(result uintptr) uint64
	resultRowsWritten   func(result uintptr) uint64
	resultBytesWritten  func(result uintptr) uint64
	setSignalHandlersOn func(enabled int32)
	sigaction           func(sig int32, act, old unsafe.Pointer) int32
	signals             map[int32]*[sigactionSize]byte
}

// openLibrary loads libchdb for the life of the process (it cannot be unloaded) and resolves its functions.
func openLibrary(path string) (lib *library, err error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load libchdb from %s: %w; run \"make engine\" to fetch it again", path, err)
	}
	lib = &library{}
	var missing []string
	resolve := func(fn any, name string) {
		symbol, err := purego.Dlsym(handle, name)
		if err != nil {
			missing = append(missing, name)
			return
		}
		purego.RegisterFunc(fn, symbol)
	}
	resolve(&lib.version, "chdb_version")
	resolve(&lib.connect, "chdb_connect")
	resolve(&lib.closeConn, "chdb_close_conn")
	resolve(&lib.query, "chdb_query_with_params_n")
	resolve(&lib.streamQuery, "chdb_stream_query_with_params_n")
	resolve(&lib.streamFetch, "chdb_stream_fetch_result")
	resolve(&lib.streamCancel, "chdb_stream_cancel_query")
	resolve(&lib.insertStream, "chdb_stream_insert_with_params_n")
	resolve(&lib.insertAppend, "chdb_stream_append")
	resolve(&lib.insertDone, "chdb_stream_done")
	resolve(&lib.insertCancel, "chdb_stream_cancel_insert")
	resolve(&lib.insertError, "chdb_stream_insert_error")
	resolve(&lib.destroyInsert, "chdb_destroy_insert_stream")
	resolve(&lib.destroyResult, "chdb_destroy_query_result")
	resolve(&lib.resultBuffer, "chdb_result_buffer")
	resolve(&lib.resultLength, "chdb_result_length")
	resolve(&lib.resultError, "chdb_result_error")
	resolve(&lib.resultRows, "chdb_result_rows_read")
	resolve(&lib.resultStorageRows, "chdb_result_storage_rows_read")
	resolve(&lib.resultStorageBytes, "chdb_result_storage_bytes_read")
	resolve(&lib.resultRowsWritten, "chdb_result_rows_written")
	resolve(&lib.resultBytesWritten, "chdb_result_bytes_written")
	resolve(&lib.setSignalHandlersOn, "chdb_set_signal_handlers_enabled")
	if len(missing) > 0 {
		return nil, fmt.Errorf("load libchdb from %s: it lacks %s: another version; run \"make engine\"", path, strings.Join(missing, ", "))
	}
	if err := lib.saveSignals(); err != nil {
		return nil, err
	}
	lib.setSignalHandlersOn(0)
	lib.restoreSignals()
	return lib, nil
}

// sigactionSize is more than any platform's struct sigaction takes.
const sigactionSize = 256

// saveSignals notes the Go runtime's handlers. libchdb, told to install none of its own, resets those of
// the deadly signals to the default at every connect; without Go's back in place, a nil dereference would
// kill the process instead of becoming a panic that ends one request.
func (l *library) saveSignals() error {
	name := "libc.so.6"
	if runtime.GOOS == "darwin" {
		name = "/usr/lib/libSystem.B.dylib"
	}
	libc, err := purego.Dlopen(name, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("load the C library: %w", err)
	}
	symbol, err := purego.Dlsym(libc, "sigaction")
	if err != nil {
		return fmt.Errorf("find sigaction: %w", err)
	}
	purego.RegisterFunc(&l.sigaction, symbol)
	l.signals = make(map[int32]*[sigactionSize]byte)
	for sig := int32(1); sig < 32; sig++ {
		saved := new([sigactionSize]byte)
		if l.sigaction(sig, nil, unsafe.Pointer(saved)) == 0 {
			l.signals[sig] = saved
		}
	}
	return nil
}

func (l *library) restoreSignals() {
	for sig, saved := range l.signals {
		l.sigaction(sig, unsafe.Pointer(saved), nil) // SIGKILL and SIGSTOP refuse, and cannot have changed
	}
}
