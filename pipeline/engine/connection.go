package engine

import (
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
	"unsafe"
)

// session is one connection of libchdb and serves one request: connecting takes 0.4 ms once the engine
// runs, and a fresh one cannot carry settings, a current database or a temporary table from one caller
// to the next. Its methods must not run at the same time.
type session struct {
	lib    *library
	handle *uintptr
}

// open makes a connection; args are options such as --path=, and settings. The first one of a process
// starts the engine, the last to close stops it.
func (l *library) open(args ...string) (*session, error) {
	var pins runtime.Pinner
	defer pins.Unpin()
	argv := make([]*byte, 0, len(args)+2)
	for _, arg := range append([]string{"kansa"}, args...) {
		b := append([]byte(arg), 0)
		pins.Pin(&b[0])
		argv = append(argv, &b[0])
	}
	count := int32(len(argv))
	argv = append(argv, nil)
	handle := l.connect(count, unsafe.Pointer(&argv[0]))
	runtime.KeepAlive(argv)
	l.restoreSignals()
	if handle == nil {
		return nil, errors.New("open a connection of the engine: refused; the lines before this one say why")
	}
	return &session{lib: l, handle: handle}, nil
}

func (s *session) close() {
	if s.handle != nil {
		s.lib.closeConn(s.handle)
		s.handle = nil
	}
}

// call hands a statement over. The strings stay Go's and need no terminating zero.
func (s *session) call(fn statementFunc, query, format string, params map[string]string) uintptr {
	if len(params) == 0 {
		return fn(*s.handle, stringPointer(query), uintptr(len(query)), stringPointer(format), uintptr(len(format)), nil, nil, nil, nil, 0)
	}
	var pins runtime.Pinner
	defer pins.Unpin()
	var names, values []unsafe.Pointer
	var nameLens, valueLens []uintptr
	pin := func(s string) (unsafe.Pointer, uintptr) {
		b := append([]byte(s), 0)
		pins.Pin(&b[0])
		return unsafe.Pointer(&b[0]), uintptr(len(s))
	}
	for name, value := range params {
		p, n := pin(name)
		names, nameLens = append(names, p), append(nameLens, n)
		p, n = pin(value)
		values, valueLens = append(values, p), append(valueLens, n)
	}
	return fn(*s.handle, stringPointer(query), uintptr(len(query)), stringPointer(format), uintptr(len(format)),
		unsafe.Pointer(&names[0]), unsafe.Pointer(&nameLens[0]), unsafe.Pointer(&values[0]), unsafe.Pointer(&valueLens[0]), uintptr(len(names)))
}

// query runs a statement to its end and holds all of its output. The caller closes the result.
func (s *session) query(query, format string, params map[string]string) (*result, error) {
	return s.lib.result(s.call(s.lib.query, query, format, params))
}

// exec runs a statement that has no output.
func (s *session) exec(query string) error {
	res, err := s.query(query, "Null", nil)
	if err != nil {
		return err
	}
	res.close()
	return nil
}

// apply makes settings count for what follows on this session. The values travel as strings, as they
// came from the address, and the engine converts them.
func (s *session) apply(settings map[string]string) error {
	if len(settings) == 0 {
		return nil
	}
	names := make([]string, 0, len(settings))
	for name := range settings {
		if !isIdentifier(name) {
			return exceptionf(codeUnknownSetting, "Unknown setting %s. (UNKNOWN_SETTING)", quoteString(name))
		}
		names = append(names, name)
	}
	sort.Strings(names)
	var b strings.Builder
	b.WriteString("SET ")
	for i, name := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name + " = " + quoteString(settings[name]))
	}
	return s.exec(b.String())
}

// stream starts a SELECT whose output is fetched block by block. The caller closes it.
func (s *session) stream(query, format string, params map[string]string) (*stream, error) {
	handle := s.call(s.lib.streamQuery, query, format, params)
	res, err := s.lib.result(handle)
	if err != nil {
		return nil, err
	}
	return &stream{session: s, head: res}, nil
}

// insert writes data, already in the given format, through an INSERT statement that has neither FORMAT
// nor data. next returns pieces until one is empty. Blocks are formed as a server forms them, and columns
// that the data leaves out get their defaults.
func (s *session) insert(query, format string, params map[string]string, next func() ([]byte, error)) (*result, error) {
	handle := s.call(s.lib.insertStream, query, format, params)
	defer s.lib.destroyInsert(handle)
	if text := cString(s.lib.insertError(handle)); text != "" {
		return nil, parseException(text)
	}
	for {
		data, err := next()
		if err != nil {
			s.lib.insertCancel(handle)
			return nil, err
		}
		if len(data) == 0 {
			break
		}
		if s.lib.insertAppend(handle, unsafe.Pointer(&data[0]), uintptr(len(data))) != 0 {
			break // the reason comes with the end
		}
	}
	return s.lib.result(s.lib.insertDone(handle))
}

// stream is a running SELECT.
type stream struct {
	session *session
	head    *result
	ended   bool
}

// next returns the next block's output, or nil at the end. The caller closes it.
func (s *stream) next() (*result, error) {
	res, err := s.session.lib.result(s.session.lib.streamFetch(*s.session.handle, s.head.handle))
	if err != nil {
		s.ended = true
		return nil, err
	}
	if len(res.data()) == 0 && res.lib.resultRows(res.handle) == 0 {
		s.ended = true
		res.close()
		return nil, nil
	}
	return res, nil
}

func (s *stream) close() {
	if !s.ended {
		s.session.lib.streamCancel(*s.session.handle, s.head.handle)
	}
	s.head.close()
}

// result is output that C owns; data is valid until close.
type result struct {
	lib    *library
	handle uintptr
}

func (l *library) result(handle uintptr) (*result, error) {
	if handle == 0 {
		return nil, exceptionf(codeUnknownException, "The engine returned nothing")
	}
	if text := cString(l.resultError(handle)); text != "" {
		l.destroyResult(handle)
		return nil, parseException(text)
	}
	return &result{lib: l, handle: handle}, nil
}

func (r *result) data() []byte {
	n := r.lib.resultLength(r.handle)
	if n == 0 {
		return nil
	}
	return unsafe.Slice(r.lib.resultBuffer(r.handle), n)
}

func (r *result) close() {
	if r.handle != 0 {
		r.lib.destroyResult(r.handle)
		r.handle = 0
	}
}

// summary is what X-ClickHouse-Summary tells.
type summary struct {
	readRows, readBytes, writtenRows, writtenBytes, resultRows, resultBytes, elapsed uint64
	// hidden leaves out what was read: it tells a reader how much everybody has.
	hidden bool
}

func (s *summary) add(r *result) {
	s.readRows += r.lib.resultStorageRows(r.handle)
	s.readBytes += r.lib.resultStorageBytes(r.handle)
	s.writtenRows += r.lib.resultRowsWritten(r.handle)
	s.writtenBytes += r.lib.resultBytesWritten(r.handle)
	s.resultRows += r.lib.resultRows(r.handle)
	s.resultBytes += uint64(r.lib.resultLength(r.handle))
}

func (s *summary) header() string {
	if s.hidden {
		s.readRows, s.readBytes = 0, 0
	}
	return fmt.Sprintf(`{"read_rows":"%d","read_bytes":"%d","written_rows":"%d","written_bytes":"%d","total_rows_to_read":"0","result_rows":"%d","result_bytes":"%d","elapsed_ns":"%d"}`,
		s.readRows, s.readBytes, s.writtenRows, s.writtenBytes, s.resultRows, s.resultBytes, s.elapsed)
}

func stringPointer(s string) unsafe.Pointer { return unsafe.Pointer(unsafe.StringData(s)) }

// cString copies a zero-terminated string out of C.
func cString(p *byte) string {
	if p == nil {
		return ""
	}
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return string(unsafe.Slice(p, n))
}

func quoteString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\x00", `\0`).Replace(s) + "'"
}

func quoteIdentifier(s string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(s) + "`"
}

func isIdentifier(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9') {
			return false
		}
	}
	return s != ""
}
