#!/bin/sh
# setup.sh [DIR]: passwords, the SFTP server's key and the configuration for compose.yaml, in DIR (default: secrets beside this
# script). What is there already stays. DIR holds secrets: keep it out of version control.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/secrets}
mkdir -p "$dir"; cd "$dir"
# A password: 32 letters and digits that begin with a letter, so that NATS does not read it as a number, with or without quotes.
password() { printf p; head -c 256 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | cut -c1-31; }
for name in nats clickhouse sftp acme globex sys grafana; do
	[ -s "$name.password" ] || password > "$name.password"
done
[ -s ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -C '' -f ssh_host_ed25519_key
cat > nats.env <<EOF
KANSA_NATS_PASSWORD=$(cat nats.password)
ACME_NATS_PASSWORD=$(cat acme.password)
GLOBEX_NATS_PASSWORD=$(cat globex.password)
SYS_NATS_PASSWORD=$(cat sys.password)
EOF
printf 'KANSA_CLICKHOUSE_PASSWORD_SHA256=%s\n' "$(tr -d '\n' < clickhouse.password | sha256sum | cut -d' ' -f1)" > clickhouse.env
printf 'KANSA_NATS_URL=nats://kansa:%s@nats-1:4222\n' "$(cat nats.password)" > tools.env
printf 'demo:%s:1001:1001:incoming\n' "$(cat sftp.password)" > sftp.users
sed -e "s|@NATS_PASSWORD@|$(cat nats.password)|g" -e "s|@SFTP_HOST_KEY@|$(cut -d' ' -f1,2 ssh_host_ed25519_key.pub)|" \
	"$here/kansa.yaml.in" > kansa.yaml
# The processes of Kansa run as 10001 and read these two.
chmod 644 kansa.yaml clickhouse.password sftp.password
