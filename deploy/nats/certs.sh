#!/bin/sh
# certs.sh DIR NAME…: a certificate authority, and one certificate for servers of these names, to begin with. Keep ca.key
# elsewhere. Certificates last a year: run it again with the same DIR, which keeps the authority, and reload the servers.
set -eu
umask 077
dir=$1; shift
mkdir -p "$dir"; cd "$dir"
if [ ! -f ca.key ]; then
	openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -days 3650 -subj "/CN=Kansa NATS CA" \
		-addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null
fi
names=$(printf 'DNS:%s,' "$@")
openssl req -newkey ed25519 -nodes -keyout server.key -out server.csr -subj "/CN=$1" 2>/dev/null
printf 'subjectAltName=%sIP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n' "$names" > server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile server.ext -out server.pem 2>/dev/null
rm -f server.csr server.ext ca.srl
chmod 644 ca.pem server.pem
