package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// nats-server (2.15) can encrypt streams anew with another key as it starts, but then it forgets their consumers and takes
// streams whose index is under the old key for damaged, and removes them. So every stream is copied, by a snapshot that
// never touches the disk in plain, from a server with the old key to one with the new one, sequences, times and consumers
// with it; and the copy takes the place of the original when all of it is on disk.

// The copy lies beside the original until it is whole, and the original beside the copy until that is in its place.
const (
	copySuffix = ".copy"
	oldSuffix  = ".old"
	wholeFile  = "whole" // in a copy that is whole
)

// ErrNotRecovered means that the server found a stream on disk that it can't read. It would go on without it, and
// whoever sets the streams up would make an empty one in its place.
var ErrNotRecovered = errors.New("a stream can not be read")

// open starts the server, and encrypts the streams anew before that if they are in plain or under the key before.
func (s *Server) open(ctx context.Context) (*server.Server, error) {
	if err := s.finishCopy(); err != nil {
		return nil, fmt.Errorf("put the streams' copy in its place: %w", err)
	}
	if s.o.Key != "" && inPlain(s.o.Dir) {
		if err := s.copyStreams(ctx, ""); err != nil {
			return nil, fmt.Errorf("encrypt the streams: %w", err)
		}
	}
	ns, err := s.start(ctx)
	if s.o.KeyBefore == "" || !errors.Is(err, ErrNotRecovered) {
		return ns, err
	}
	if err := s.copyStreams(ctx, s.o.KeyBefore); err != nil {
		return nil, fmt.Errorf("encrypt the streams with a new key: %w", err)
	}
	return s.start(ctx)
}

// streamsDir is where a server that has no accounts keeps its streams.
func streamsDir(dir string) string {
	return filepath.Join(dir, "jetstream", server.DEFAULT_GLOBAL_ACCOUNT, "streams")
}

// inPlain says whether any stream of a directory is.
func inPlain(dir string) bool {
	metas, _ := filepath.Glob(filepath.Join(streamsDir(dir), "*", server.JetStreamMetaFile)) // the pattern is right
	for _, meta := range metas {
		if _, err := os.Stat(filepath.Join(filepath.Dir(meta), server.JetStreamMetaFileKey)); errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// copyStreams copies everything from the directory, which is under the key from, to a copy under the new key, and puts
// that in its place.
func (s *Server) copyStreams(ctx context.Context, from string) error {
	began := time.Now()
	old := &Server{o: ServerOptions{Dir: s.o.Dir, Key: from, NoListen: true}, log: s.log, broken: make(chan string, 1), token: newToken()}
	to := &Server{o: ServerOptions{Dir: s.o.Dir + copySuffix, Key: s.o.Key, NoListen: true}, log: s.log, broken: make(chan string, 1), token: newToken()}
	if err := os.RemoveAll(to.o.Dir); err != nil {
		return err
	}
	s.log.Info("the streams are copied under another key; this needs room for all of them once more")
	streams, err := copyAll(ctx, old, to)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to.o.Dir, wholeFile), nil, 0o600); err != nil {
		return err
	}
	if err := syncTree(to.o.Dir); err != nil {
		return err
	}
	s.log.Info("the streams are under the new key", slog.Int("streams", streams), slog.Duration("duration", time.Since(began)))
	return s.finishCopy()
}

// finishCopy puts a copy that is whole in the place of the original, and removes one that is not.
func (s *Server) finishCopy() error {
	dir := s.o.Dir
	if _, err := os.Stat(filepath.Join(dir+copySuffix, wholeFile)); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, wholeFile)); err == nil { // it was cut off after the last step but one
			return errors.Join(os.RemoveAll(dir+oldSuffix), os.Remove(filepath.Join(dir, wholeFile)))
		}
		return os.RemoveAll(dir + copySuffix)
	} else if err != nil {
		return err
	}
	if err := os.Rename(dir, dir+oldSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(dir+copySuffix, dir); err != nil {
		return err
	}
	if err := syncFile(filepath.Dir(dir)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir+oldSuffix), os.Remove(filepath.Join(dir, wholeFile)))
}

func copyAll(ctx context.Context, old, to *Server) (streams int, err error) {
	var ends []*jetStream
	defer func() {
		for _, e := range ends {
			e.close()
		}
	}()
	for _, s := range []*Server{old, to} {
		e, err := s.within(ctx)
		if err != nil {
			return 0, err
		}
		ends = append(ends, e)
	}
	// A list has a limit of 5 s of its own, which copying must not use up.
	var names []string
	list := ends[0].js.ListStreams(ctx)
	for info := range list.Info() {
		names = append(names, info.Config.Name)
	}
	if err := list.Err(); err != nil {
		return 0, fmt.Errorf("list the streams: %w", err)
	}
	for _, name := range names {
		if err := copyStream(ctx, ends[0], ends[1], name); err != nil {
			return 0, fmt.Errorf("copy stream %s: %w", name, err)
		}
	}
	return len(names), nil
}

// jetStream is a server that only this process reaches.
type jetStream struct {
	ns *server.Server
	nc *nats.Conn
	js jetstream.JetStream
}

func (s *Server) within(ctx context.Context) (*jetStream, error) {
	ns, err := s.start(ctx)
	if err != nil {
		return nil, err
	}
	e := &jetStream{ns: ns}
	if e.nc, err = nats.Connect("", nats.InProcessServer(ns), nats.Token(s.token)); err == nil {
		e.js, err = jetstream.New(e.nc)
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("connect to the embedded server: %w", err)
	}
	return e, nil
}

func (e *jetStream) close() {
	if e.nc != nil {
		e.nc.Close()
	}
	e.ns.Shutdown()
	e.ns.WaitForShutdown()
}

// ask asks JetStream's API.
func (e *jetStream) ask(ctx context.Context, subject string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	msg, err := e.nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return err
	}
	return apiAnswer(msg.Data, answer)
}

func apiAnswer(data []byte, answer any) error {
	var failed server.ApiResponse
	if err := json.Unmarshal(data, &failed); err != nil {
		return err
	}
	if failed.Error != nil {
		return failed.Error
	}
	return json.Unmarshal(data, answer)
}

// copyStream takes a snapshot of a stream and gives it to another server, chunk by chunk.
func copyStream(ctx context.Context, from, to *jetStream, name string) error {
	inbox := nats.NewInbox()
	chunks, err := from.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer chunks.Unsubscribe() //nolint:errcheck // the connection is closed soon
	var snapshot server.JSApiStreamSnapshotResponse
	if err := from.ask(ctx, fmt.Sprintf(server.JSApiStreamSnapshotT, name), &server.JSApiStreamSnapshotRequest{DeliverSubject: inbox, CheckMsgs: true}, &snapshot); err != nil {
		return fmt.Errorf("begin its snapshot: %w", err)
	}
	var restore server.JSApiStreamRestoreResponse
	if err := to.ask(ctx, fmt.Sprintf(server.JSApiStreamRestoreT, name), &server.JSApiStreamRestoreRequest{Config: *snapshot.Config, State: *snapshot.State}, &restore); err != nil {
		return fmt.Errorf("begin its copy: %w", err)
	}
	for {
		chunk, err := nextChunk(ctx, chunks)
		if err != nil {
			return err
		}
		answer, err := give(ctx, to, restore.DeliverSubject, chunk.Data)
		if err != nil {
			return fmt.Errorf("write its copy: %w", err)
		}
		if len(chunk.Data) > 0 {
			if chunk.Reply == "" { // the last part but the end
				continue
			}
			if err := chunk.Respond(nil); err != nil {
				return err
			}
			continue
		}
		var made server.JSApiStreamCreateResponse
		if err := apiAnswer(answer, &made); err != nil {
			return fmt.Errorf("end its copy: %w", err)
		}
		if made.StreamInfo == nil || made.State.LastSeq != snapshot.State.LastSeq || made.State.Msgs != snapshot.State.Msgs {
			return fmt.Errorf("the copy has other messages than the stream, which has %d up to %d", snapshot.State.Msgs, snapshot.State.LastSeq)
		}
		return nil
	}
}

// nextChunk returns the next part of a snapshot; the last one is empty.
func nextChunk(ctx context.Context, chunks *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	chunk, err := chunks.NextMsgWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("read its snapshot: %w", err)
	}
	if status := chunk.Header.Get("Status"); len(chunk.Data) == 0 && status != "" && status != "204" {
		return nil, fmt.Errorf("read its snapshot: %s %s", status, chunk.Header.Get("Description"))
	}
	return chunk, nil
}

// give sends a part and waits until it is taken.
func give(ctx context.Context, to *jetStream, subject string, data []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	answer, err := to.nc.RequestWithContext(ctx, subject, data)
	if err != nil {
		return nil, err
	}
	if len(data) > 0 && len(answer.Data) > 0 { // else nothing is said
		return nil, apiAnswer(answer.Data, &server.JSApiStreamCreateResponse{})
	}
	return answer.Data, nil
}

// syncTree makes all files and names of a directory durable, and its own.
func syncTree(dir string) error {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncFile(path)
	})
	return errors.Join(err, syncFile(filepath.Dir(dir)))
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
