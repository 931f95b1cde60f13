package store

import (
	"fmt"
	"strconv"
	"strings"
)

// MinVersion is the oldest ClickHouse server that Kansa supports: the long-term release before those that it is tested
// with. deploy/README.md states it, too.
const MinVersion = "25.8"

// CheckVersion returns an error that names what was found, if it is older than MinVersion. A version that cannot be
// read, such as a build's own, passes.
func CheckVersion(found string) error {
	have, want := numbers(found), numbers(MinVersion)
	if len(have) < 2 || have[0] > want[0] || have[0] == want[0] && have[1] >= want[1] {
		return nil
	}
	return fmt.Errorf("ClickHouse is version %s, and Kansa needs %s or newer", found, MinVersion)
}

// VersionRemedy is what to do about an old ClickHouse.
const VersionRemedy = "upgrade the ClickHouse servers to a supported release, one at a time (deploy/README.md, Roles apart)"

func numbers(version string) (all []int) {
	for part := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		all = append(all, n)
	}
	return all
}
