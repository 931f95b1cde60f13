package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kansa-audit/kansa/pipeline/config"
)

// Role is a part of the pipeline that can run in a process of its own, any number of times.
type Role string

// The roles.
const (
	RoleWriter   Role = "writer"   // AUDIT → ClickHouse
	RoleRollup   Role = "rollup"   // closed hours → partitions
	RoleExporter Role = "exporter" // partitions → SFTP, mail
	RoleAPI      Role = "api"      // downloads, health
	RoleGateway  Role = "gateway"  // HTTP → AUDIT, at the API's address
)

// Roles lists every role.
var Roles = []Role{RoleWriter, RoleRollup, RoleExporter, RoleAPI, RoleGateway}

// ParseRoles checks names of roles.
func ParseRoles(names []string) ([]Role, error) {
	var roles []Role
	for _, n := range names {
		if !slices.Contains(Roles, Role(n)) {
			known := make([]string, len(Roles))
			for i, r := range Roles {
				known[i] = string(r)
			}
			return nil, fmt.Errorf("role %q is not known: use %s", n, strings.Join(known, ", "))
		}
		roles = append(roles, Role(n))
	}
	return roles, nil
}

// CheckExternal refuses roles of their own without servers of their own: two processes can't share what
// is embedded in one.
func CheckExternal(c *config.Config, roles []Role) error {
	var errs []error
	if c.NATS.URL == "" {
		errs = append(errs, errors.New("nats.url is empty: roles that run apart need a NATS server; kansa up has one inside"))
	}
	if c.ClickHouse.URL == "" && (slices.Contains(roles, RoleWriter) || slices.Contains(roles, RoleRollup) || slices.Contains(roles, RoleAPI)) {
		errs = append(errs, errors.New("clickhouse.url is empty: the writer and the rollup need a ClickHouse server; kansa up has one inside"))
	}
	return errors.Join(errs...)
}
