package deploy_test

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
)

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// checkCommand holds arguments of kansa against what it knows: the subcommand, and the roles of run.
func checkCommand(t *testing.T, where string, args []string) {
	t.Helper()
	switch {
	case len(args) == 0:
		t.Errorf("%s: no command", where)
	case args[0] == "run":
		roles := slices.DeleteFunc(slices.Clone(args[1:]), func(a string) bool { return strings.HasPrefix(a, "-") || strings.HasPrefix(a, "/") })
		if _, err := pipeline.ParseRoles(roles); err != nil || len(roles) == 0 {
			t.Errorf("%s: %v: %v", where, args, err)
		}
	case !slices.Contains([]string{"up", "check-config", "--help"}, args[0]):
		t.Errorf("%s: %v is no command that is expected here", where, args)
	}
}

// checkExternal loads a configuration for kansa run.
func checkExternal(t *testing.T, path string) *config.Config {
	t.Helper()
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := pipeline.CheckExternal(c, pipeline.Roles); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	if c.Streams.Replicas != 3 || !strings.HasPrefix(c.API.Listen, "0.0.0.0:8080") {
		t.Errorf("%s: %d replicas, listens on %s", path, c.Streams.Replicas, c.API.Listen)
	}
	return c
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	text := read(t, "Dockerfile")
	stages, user := []string{}, ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "FROM":
			if len(words) != 4 {
				t.Errorf("a stage without a name: %s", line)
				continue
			}
			stages = append(stages, words[3])
		case "USER":
			user = words[1]
		case "COPY":
			if from, ok := strings.CutPrefix(words[1], "--from="); ok {
				if !slices.Contains(stages, from) {
					t.Errorf("no stage before it: %s", line)
				}
				continue
			}
			for _, source := range words[1 : len(words)-1] {
				if _, err := os.Stat(filepath.Join("..", source)); err != nil {
					t.Errorf("%s: %v", strings.TrimSpace(line), err)
				}
				top, _, _ := strings.Cut(source, "/")
				if !strings.Contains(read(t, "Dockerfile.dockerignore"), "\n!"+top+"\n") {
					t.Errorf("Dockerfile.dockerignore leaves %s out", top)
				}
			}
		}
	}
	if len(stages) == 0 || stages[len(stages)-1] != "kansa" || user != "10001:10001" {
		t.Errorf("stages %v, user %q", stages, user)
	}
	for _, want := range []string{"HEALTHCHECK", "/readyz", `ENTRYPOINT ["/usr/bin/kansa"]`, "npm ci", "-trimpath"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "..", "go.mod"))
	if version == nil || !strings.Contains(text, "FROM golang:"+version[1]+"-") {
		t.Errorf("go.mod wants Go %v", version)
	}
}

func TestCompose(t *testing.T) {
	t.Parallel()
	var compose struct {
		Services map[string]struct {
			Image       string
			Command     any
			Volumes     []string
			EnvFile     []string `yaml:"env_file"`
			NetworkMode string   `yaml:"network_mode"`
			ReadOnly    bool     `yaml:"read_only"`
			CapDrop     []string `yaml:"cap_drop"`
			DependsOn   map[string]any
			Configs     []struct{ Source, Target string }
		}
		Configs map[string]struct{ File, Content string }
		Volumes map[string]any
	}
	decode(t, "compose.yaml", &compose)
	secrets := t.TempDir()
	if out, err := exec.Command(filepath.Join("compose", "setup.sh"), secrets).CombinedOutput(); err != nil {
		t.Fatalf("setup.sh: %v\n%s", err, out)
	}
	first := read(t, secrets, "kansa.yaml")
	if out, err := exec.Command(filepath.Join("compose", "setup.sh"), secrets).CombinedOutput(); err != nil || read(t, secrets, "kansa.yaml") != first {
		t.Errorf("setup.sh a second time: %v, or other secrets\n%s", err, out)
	}
	exists := func(service, path string) {
		t.Helper()
		here := filepath.FromSlash(path)
		if name, ok := strings.CutPrefix(path, "./compose/secrets/"); ok {
			here = filepath.Join(secrets, name)
		}
		if _, err := os.Stat(here); err != nil {
			t.Errorf("%s: %v", service, err)
		}
	}
	var roles []string
	for name, s := range compose.Services {
		for _, v := range s.Volumes {
			source, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(source, ".") {
				exists(name, source)
			} else if _, ok := compose.Volumes[source]; !ok {
				t.Errorf("%s: no volume %s", name, source)
			}
		}
		for _, f := range s.EnvFile {
			exists(name, f)
		}
		for _, c := range s.Configs {
			if _, ok := compose.Configs[c.Source]; !ok {
				t.Errorf("%s: no config %s", name, c.Source)
			}
		}
		if other, ok := strings.CutPrefix(s.NetworkMode, "service:"); ok {
			if _, ok := compose.Services[other]; !ok {
				t.Errorf("%s: no service %s", name, other)
			}
		}
		if s.Image != "kansa-roles" {
			continue
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			t.Errorf("%s may write to its root or has capabilities", name)
		}
		if name == "kansa" { // the tools
			continue
		}
		var args []string
		list, _ := s.Command.([]any)
		for _, a := range list {
			args = append(args, fmt.Sprint(a))
		}
		checkCommand(t, "compose.yaml: "+name, args)
		roles = append(roles, name)
	}
	slices.Sort(roles)
	if !slices.Equal(roles, []string{"api", "exporter", "gateway", "rollup", "writer"}) {
		t.Errorf("roles %v", roles)
	}
	for name, c := range compose.Configs {
		if c.Content == "" {
			exists("config "+name, c.File)
		}
	}
	c := checkExternal(t, filepath.Join(secrets, "kansa.yaml"))
	if len(c.Destinations) != 2 {
		t.Errorf("%d destinations", len(c.Destinations))
	}
}

func TestKubernetes(t *testing.T) {
	t.Parallel()
	var k struct {
		Resources       []string
		SecretGenerator []struct{ Files []string }
	}
	decode(t, filepath.Join("kubernetes", "kustomization.yaml"), &k)
	files, err := filepath.Glob(filepath.Join("kubernetes", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		name := filepath.Base(path)
		if name != "kustomization.yaml" && name != "kansa.yaml" && !slices.Contains(k.Resources, name) {
			t.Errorf("kustomization.yaml does not name %s", name)
		}
	}
	checkExternal(t, filepath.Join("kubernetes", "kansa.yaml"))

	type container struct {
		Name, Image     string
		Args            []string
		LivenessProbe   map[string]any `yaml:"livenessProbe"`
		ReadinessProbe  map[string]any `yaml:"readinessProbe"`
		StartupProbe    map[string]any `yaml:"startupProbe"`
		SecurityContext struct {
			ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
			AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		} `yaml:"securityContext"`
		Resources    struct{ Requests, Limits map[string]any }
		VolumeMounts []struct{ Name string } `yaml:"volumeMounts"`
	}
	budgets, workloads := map[string]bool{}, map[string]bool{}
	for _, resource := range k.Resources {
		if filepath.Ext(resource) != ".yaml" {
			continue
		}
		decoder := yaml.NewDecoder(strings.NewReader(read(t, "kubernetes", resource)))
		for {
			var m struct {
				APIVersion string `yaml:"apiVersion"`
				Kind       string
				Metadata   struct{ Name string }
				Spec       struct {
					Template *struct {
						Spec struct {
							SecurityContext struct {
								RunAsNonRoot bool `yaml:"runAsNonRoot"`
							} `yaml:"securityContext"`
							Containers     []container
							InitContainers []container `yaml:"initContainers"`
							Volumes        []struct{ Name string }
						}
					}
					VolumeClaimTemplates []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
				}
			}
			err := decoder.Decode(&m)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", resource, err)
			}
			if m.APIVersion == "" || m.Kind == "" || m.Metadata.Name == "" {
				t.Errorf("%s: a manifest without kind or name", resource)
			}
			if m.Kind == "PodDisruptionBudget" {
				budgets[m.Metadata.Name] = true
			}
			if m.Spec.Template == nil {
				continue
			}
			workloads[m.Metadata.Name] = true
			pod := m.Spec.Template.Spec
			if !pod.SecurityContext.RunAsNonRoot {
				t.Errorf("%s may run as root", m.Metadata.Name)
			}
			volumes := map[string]bool{}
			for _, v := range pod.Volumes {
				volumes[v.Name] = true
			}
			for _, v := range m.Spec.VolumeClaimTemplates {
				volumes[v.Metadata.Name] = true
			}
			for _, c := range append(pod.Containers, pod.InitContainers...) {
				if !c.SecurityContext.ReadOnlyRootFilesystem || c.SecurityContext.AllowPrivilegeEscalation == nil || *c.SecurityContext.AllowPrivilegeEscalation {
					t.Errorf("%s: %s can write to its root or gain privileges", m.Metadata.Name, c.Name)
				}
				if c.Resources.Limits["memory"] == nil {
					t.Errorf("%s: %s has no limit of memory", m.Metadata.Name, c.Name)
				}
				for _, mount := range c.VolumeMounts {
					if !volumes[mount.Name] {
						t.Errorf("%s: no volume %s", m.Metadata.Name, mount.Name)
					}
				}
			}
			for _, c := range pod.Containers {
				if c.LivenessProbe == nil || c.ReadinessProbe == nil || c.StartupProbe == nil {
					t.Errorf("%s: %s lacks a probe", m.Metadata.Name, c.Name)
				}
				if c.Image == "kansa-roles" {
					checkCommand(t, "kubernetes/"+resource, c.Args)
				}
			}
		}
	}
	for name := range workloads {
		if !budgets[name] {
			t.Errorf("%s has no PodDisruptionBudget", name)
		}
	}
	if len(workloads) != 5 {
		t.Errorf("workloads %v", workloads)
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for name, capabilities := range map[string]string{"kansa.service": "CAP_SYS_NICE", "kansa@.service": ""} { // only the engine needs one
		text := read(t, "systemd", name)
		command := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/kansa (.*)$`).FindStringSubmatch(text)
		if command == nil {
			t.Fatalf("%s starts nothing", name)
		}
		checkCommand(t, name, strings.Fields(strings.ReplaceAll(command[1], "%i", "writer")))
		for _, want := range []string{"User=kansa", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=" + capabilities + "\n", "AmbientCapabilities=" + capabilities + "\n", "SystemCallFilter=@system-service", "StateDirectoryMode=0700"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %s", name, want)
			}
		}
	}
	if strings.Contains(read(t, "systemd", "kansa.service"), "\nMemoryDenyWriteExecute=yes") {
		t.Error("the embedded engine compiles expressions: it can't do without memory that is written and run")
	}
}

func TestClickHouseConfiguration(t *testing.T) {
	t.Parallel()
	for _, path := range []string{filepath.Join("clickhouse", "config.d", "kansa.xml"), filepath.Join("clickhouse", "config.d", "cluster.xml"), filepath.Join("clickhouse", "users.d", "kansa.xml")} {
		d := xml.NewDecoder(strings.NewReader(read(t, path)))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%s: %v", path, err)
				break
			}
		}
	}
}

// The embedded engine refuses to make users, but its parser is that of a server.
func TestAnalystsStatementsParse(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter)
	n := 0
	comments := regexp.MustCompile(`(?m)--.*$`)
	for statement := range strings.SplitSeq(comments.ReplaceAllString(read(t, "clickhouse", "analysts.sql"), ""), ";") {
		if statement = strings.TrimSpace(statement); statement == "" {
			continue
		}
		n++
		if err := s.Store.Conn().Exec(t.Context(), "EXPLAIN AST "+statement); err != nil {
			t.Errorf("%s\n%v", statement, err)
		}
	}
	if n < 8 {
		t.Errorf("%d statements", n)
	}
	if err := s.Store.Conn().Exec(t.Context(), "EXPLAIN AST CREATE ROW POLICI x ON y"); err == nil {
		t.Error("EXPLAIN AST takes everything")
	}
}

// The policies let each role reach what its configuration may name: a port that is missing here is a feature that hangs.
func TestPoliciesLetRolesReachWhatTheyUse(t *testing.T) {
	t.Parallel()
	type policy struct {
		Kind     string
		Metadata struct{ Name string }
		Spec     struct {
			PodSelector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			} `yaml:"podSelector"`
			Egress []struct {
				Ports []struct {
					Port     int
					Protocol string
				}
			}
		}
	}
	var all []policy
	decoder := yaml.NewDecoder(strings.NewReader(read(t, "kubernetes", "policies.yaml")))
	for {
		var p policy
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	reaches := func(role string, port int) bool {
		for _, p := range all {
			labels := p.Spec.PodSelector.MatchLabels
			if labels["app"] != "" && labels["app"] != "kansa" || labels["role"] != "" && labels["role"] != role {
				continue
			}
			for _, rule := range p.Spec.Egress {
				for _, to := range rule.Ports {
					if to.Port == port && (to.Protocol == "" || to.Protocol == "TCP") {
						return true
					}
				}
			}
		}
		return false
	}
	for what, need := range map[string]struct {
		port  int
		roles []string
	}{
		"the OpenID provider":     {443, []string{"api"}},
		"S3":                      {443, []string{"rollup", "exporter", "api"}},
		"the collector of traces": {4318, []string{"writer", "rollup", "exporter", "api", "gateway"}},
		"NATS":                    {4222, []string{"writer", "rollup", "exporter", "api", "gateway"}},
		"ClickHouse":              {8123, []string{"writer", "rollup", "api"}},
		"SFTP servers":            {22, []string{"exporter"}},
		"the mail server":         {587, []string{"exporter"}},
	} {
		for _, role := range need.roles {
			if !reaches(role, need.port) {
				t.Errorf("the role %s does not reach %s, port %d", role, what, need.port)
			}
		}
	}
}
