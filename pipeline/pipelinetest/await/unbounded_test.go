package await

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// notYet are directories and files that still have waits of their own.
var notYet = map[string]bool{"deploy": true, "pipeline/chaos": true}

// A test that receives or waits without a limit hangs until the limit of its package, and does not say what it waits for.
func TestNoTestWaitsWithoutALimit(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && (rel == "build" || rel == ".git" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() && notYet[rel] {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, "_test.go") || notYet[rel] {
			return nil
		}
		files++
		for _, wait := range unbounded(t, path, nil) {
			t.Errorf("%s:%d: %s has no limit: use await.Receive or await.Return, or a select with a deadline", rel, wait.line, wait.text)
		}
		return nil
	})
	if err != nil || files < 100 {
		t.Fatalf("%d files: %v", files, err)
	}
}

func TestUnboundedWaitsAreFound(t *testing.T) {
	t.Parallel()
	const source = `package x
func TestX(t *testing.T) {
	<-a
	v := <-b()
	all.Wait()
	select { case <-c: case <-time.After(1): }
	go func() { <-d }()
	<-time.After(1)
	<-ctx.Done()
	if err := <-e; err != nil { t.Fatal(err) }
	t.Run("sub", func(t *testing.T) { <-f })
	t.Cleanup(func() { <-g })
	defer func() { <-h }()
	all.Go(func() { <-i })
	synctest.Wait()
	synctest.Test(t, func(t *testing.T) { <-j })
	defer all.Wait()
	<-tick.C
}
func (f *fake) Blocks() { <-k }
`
	var found []string
	for _, w := range unbounded(t, "x_test.go", source) {
		found = append(found, w.text)
	}
	if got, want := strings.Join(found, " "), "<-a <-b all.Wait <-ctx.Done <-e <-f <-g <-h all.Wait"; got != want {
		t.Errorf("found %s, want %s", got, want)
	}
}

type wait struct {
	line int
	text string
}

// unbounded lists the waits of a file that hold up a test: those of functions that take
// a test, neither in a select nor in a function that runs elsewhere.
func unbounded(t *testing.T, path string, source any) []wait {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	inTest := map[*ast.FuncLit]bool{} // those that the test itself runs
	bounded := map[ast.Node]bool{}
	var found []wait
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CommClause: // of a select, which has other ways out
			if n.Comm != nil {
				ast.Inspect(n.Comm, func(n ast.Node) bool {
					if u, ok := n.(*ast.UnaryExpr); ok {
						bounded[u] = true
					}
					return true
				})
			}
		case *ast.DeferStmt:
			if f, ok := n.Call.Fun.(*ast.FuncLit); ok {
				inTest[f] = true
			}
		case *ast.CallExpr:
			switch name := called(n); name {
			case "synctest.Test", "synctest.Wait": // it has a clock of its own, and knows when nothing can go on
				return false
			default:
				_, method, _ := strings.Cut(name, ".")
				if method == "Wait" && len(n.Args) == 0 {
					found = append(found, wait{set.Position(n.Pos()).Line, name})
				}
				for _, arg := range n.Args {
					if f, ok := arg.(*ast.FuncLit); ok && (method == "Cleanup" || method == "Run") {
						inTest[f] = true
					}
				}
			}
		case *ast.FuncDecl:
			return n.Type.Params != nil && slices.ContainsFunc(n.Type.Params.List, func(p *ast.Field) bool {
				of := p.Type
				if star, ok := of.(*ast.StarExpr); ok {
					of = star.X
				}
				return strings.HasPrefix(name(of), "testing.")
			})
		case *ast.FuncLit:
			return inTest[n]
		case *ast.UnaryExpr:
			if n.Op != token.ARROW || bounded[n] {
				return true
			}
			name := name(n.X)
			if call, ok := n.X.(*ast.CallExpr); ok {
				name = called(call)
			}
			if name != "time.After" && !strings.HasSuffix(name, ".C") {
				found = append(found, wait{set.Position(n.Pos()).Line, "<-" + name})
			}
		}
		return true
	})
	return found
}

func called(c *ast.CallExpr) string { return name(c.Fun) }

func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		if in := name(e.X); in != "" {
			return in + "." + e.Sel.Name
		}
		return e.Sel.Name
	}
	return ""
}
