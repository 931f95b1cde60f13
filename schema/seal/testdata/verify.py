#!/usr/bin/env python3
"""Verifies partition stores and archives by SPEC.md alone: verify.py KEYFILE STORE|ARCHIVE.zip...

A second implementation, with nothing but the standard library, to show that SPEC.md is enough. It leaves
one thing out: the sum of XXH3 hashes in "digest", which no library here has; only its count is checked.
It is slow, and wants each archive, and the largest partition of a store, in memory.
"""
import base64, hashlib, json, os, re, struct, sys, zipfile, zlib
from datetime import datetime, timedelta, timezone


class Bad(Exception):
    pass


def need(ok, what):
    if not ok:
        raise Bad(what)


# Ed25519, RFC 8032 section 5.1, in extended coordinates.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def mul(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add(q, p)
        p, n = add(p, p), n >> 1
    return q


def point(b):
    y = int.from_bytes(b, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    need(y < P, "point out of range")
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    need((x * x - x2) % P == 0 and not (x == 0 and sign), "no point")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = point(b"\x58" + b"\x66" * 31)


def ed25519(key, text, sig):
    try:
        a, r, s = point(key), point(sig[:32]), int.from_bytes(sig[32:], "little")
    except Bad:
        return False
    if len(sig) != 64 or s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(sig[:32] + key + text).digest(), "little") % L
    left, right = mul(s, BASE), add(r, mul(h, a))
    return all((left[i] * right[2] - right[i] * left[2]) % P == 0 for i in (0, 1))


# Notes, section 1.
class Key:
    def __init__(self, line):
        self.line = line
        name, hash_, data = line.split("+", 2)
        raw = base64.b64decode(data, validate=True)
        need(len(raw) == 33 and raw[0] == 1, "no Ed25519 key")
        self.name, self.id, self.public = name, bytes.fromhex(hash_), raw[1:]
        need(hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4] == self.id, "hash of the key")


def open_note(data, keys):
    """Returns the text and the positions in keys of those that signed it."""
    at = data.rfind(b"\n\n")
    need(at >= 0 and data.endswith(b"\n") and not re.search(rb"[\x00-\x09\x0b-\x1f]", data), "no note")
    text, signed, seen = data[: at + 1], set(), set()
    for line in data[at + 2 : -1].split(b"\n"):
        m = re.fullmatch("— ([^ +]+) ([A-Za-z0-9+/]+=*)", line.decode("utf-8"))
        need(m, "no signature line")
        raw = base64.b64decode(m[2], validate=True)
        need(len(raw) > 4 and base64.b64encode(raw).decode() == m[2], "base64 not in its one form")
        need((m[1], raw[:4]) not in seen, "signature twice")
        seen.add((m[1], raw[:4]))
        for i, k in enumerate(keys):
            if (k.name, k.id) == (m[1], raw[:4]):
                need(ed25519(k.public, text, raw[4:]), "signature does not hold")
                signed.add(i)
    need(signed, "not signed by a trusted key")
    return text, signed


# Canonical JSON, section 2.
def canonical(text, fields):
    v = json.loads(text)
    need(isinstance(v, dict) and list(v) == fields, "fields")
    need((json.dumps(v, indent=2, ensure_ascii=False) + "\n").encode() == text, "not in its one form")
    return v


def instant(s):
    need(isinstance(s, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", s), "time")
    return datetime.strptime(s, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


FIELDS = """version schema_version organization trail hour_start hour_end rows first_stream_seq last_stream_seq digest csv_bytes
csv_sha256 csv_crc32 file_bytes file_sha256 merkle_root gaps number previous""".split()
COLUMNS = """recorded_at stream_seq batch_index organization trail recorded_by id occurred_at source event action outcome actor_type actor_id
actor_name target_type target_id target_name app_id ip user_agent session_id trace_id location description before after data
data_type attributes""".split()
HEADER = (",".join('"%s"' % c for c in COLUMNS) + "\r\n").encode()
EMPTY = hashlib.sha256(b"").hexdigest()


class Store:
    archive = False

    def __init__(self, root):
        need(os.path.isdir(root), "no folder and no .zip")
        self.root = root
        self.names = {os.path.relpath(os.path.join(d, f), root).replace(os.sep, "/") for d, _, fs in os.walk(root) for f in fs}
        self.names = {n for n in self.names if not n.startswith(".exports/")}

    def read(self, name):
        with open(os.path.join(self.root, name), "rb") as f:
            return f.read()


# Archives, section 6.
class Archive:
    archive = True

    def __init__(self, path):
        data = open(path, "rb").read()
        self.files, self.times, at = {}, {}, 0
        with zipfile.ZipFile(path) as z:
            infos, start, comment = z.infolist(), z.start_dir, z.comment
        for i in infos:
            name = i.orig_filename
            need(name == i.filename and not name.startswith("/") and not re.search(r"[\\\x00-\x1f:]", name), "name")
            need(not {"", ".", ".."} & set(name.split("/")), "name that leads out of the folder")
            need(i.header_offset == at and data[at : at + 4] == b"PK\x03\x04", name + ": bytes between entries")
            _, flags, method, _, crc, packed, size, n, m = struct.unpack("<HHHLLLLHH", data[at + 4 : at + 30])
            extra = data[at + 30 + n : at + 30 + n + m]
            if packed == size == 0xFFFFFFFF:
                need(extra[:4] == struct.pack("<HH", 1, 16), name + ": Zip64")
                size, packed = struct.unpack("<QQ", extra[4:20])
            need(data[at + 30 : at + 30 + n] == name.encode() and not flags & ~0x800, name + ": local header")
            need((method, crc, packed, size) == (i.compress_type, i.CRC, i.compress_size, i.file_size), name + ": local header")
            at += 30 + n + m
            body = data[at : at + packed]
            at += packed
            if method == 8 and name.endswith(".csv"):
                name, body = name + ".gz", bytes.fromhex("1f8b08000000000004ff") + body + struct.pack("<II", crc, size & 0xFFFFFFFF)
            else:
                need(method == 0 and not name.endswith((".csv", ".csv.gz")), name + ": no archive has such an entry")
                need(packed == size and zlib.crc32(body) == crc, name + ": CRC-32")
            need(name not in self.files, name + ": there twice")
            self.files[name], self.times[name] = body, i.date_time
        need(start == at and comment == b"", "bytes behind the entries")
        for i in infos:
            n, m, c = struct.unpack("<HHH", data[at + 28 : at + 34])
            need(data[at : at + 4] == b"PK\x01\x02" and c == 0, "directory")
            at += 46 + n + m
        if data[at : at + 4] == b"PK\x06\x06":
            at += 56 + 20
        need(data[at : at + 4] == b"PK\x05\x06" and len(data) == at + 22, "bytes behind the directory")
        self.names = set(self.files)

    def read(self, name):
        return self.files[name]


# Keys, section 5.
def ring(store, trusted):
    keys, times = [], []
    while True:
        path = "keys/%04d.rotation" % (len(times) + 1)
        if path not in store.names:
            break
        data = store.read(path)
        v = json.loads(data[: data.rfind(b"\n\n") + 1])
        pair = [Key(v["old_key"]), Key(v["new_key"])]
        for k in pair:
            text, _ = open_note(data, [k])
        canonical(text, ["version", "number", "old_key", "new_key", "time"])
        need(v["version"] == 1 and v["number"] == len(times) + 1, "rotation number")
        need(not keys or keys[-1].line == pair[0].line, "rotations do not join")
        need(not times or times[-1] <= instant(v["time"]), "rotations go back in time")
        keys = (keys or pair[:1]) + pair[1:]
        need(len({k.line for k in keys}) == len(keys), "rotation to a key of before")
        times.append(instant(v["time"]))
    keys = keys or [Key(trusted)]
    need(trusted in [k.line for k in keys], "the trusted key is not among the rotations")
    if store.archive:
        need(store.read("seal.pub").decode() in [k.line + "\n" for k in keys], "seal.pub")
    else:
        need(store.read("keys/0000.pub").decode() == keys[0].line + "\n", "keys/0000.pub")
    return keys, times


# Rows and the Merkle tree, sections 3 and 4.
VALUE = rb'(?:"(?:[^"]|"")*"|[^",\r\n]*)'
ROW = re.compile(VALUE + (rb"," + VALUE) * (len(COLUMNS) - 1) + rb"\r\n")


def value(raw):
    return raw[1:-1].replace(b'""', b'"').decode() if raw[:1] == b'"' else raw.decode()


def rows_of(text):
    need(text.startswith(HEADER), "header line")
    at, rows = len(HEADER), []
    while at < len(text):
        m = ROW.match(text, at)
        need(m, "row %d" % (len(rows) + 1))
        rows.append(m[0])
        at = m.end()
    return rows


def root_of(leaves):
    stack = []  # of (height, hash)
    for leaf in leaves:
        node = (0, hashlib.sha256(b"\x00" + leaf).digest())
        while stack and stack[-1][0] == node[0]:
            node = (node[0] + 1, hashlib.sha256(b"\x01" + stack.pop()[1] + node[1]).digest())
        stack.append(node)
    if not stack:
        return EMPTY
    right = stack.pop()[1]
    while stack:
        right = hashlib.sha256(b"\x01" + stack.pop()[1] + right).digest()
    return right.hex()


def partition(m, data):
    need(len(data) == m["file_bytes"] and hashlib.sha256(data).hexdigest() == m["file_sha256"], "file")
    need(data[:10] == bytes.fromhex("1f8b08000000000004ff"), "gzip header")
    z = zlib.decompressobj(-15)
    text = z.decompress(data[10:]) + z.flush()
    need(z.eof and z.unused_data == struct.pack("<II", zlib.crc32(text), len(text) & 0xFFFFFFFF), "gzip trailer")
    need(len(text) == m["csv_bytes"] and zlib.crc32(text) == m["csv_crc32"], "size or CRC-32 of the CSV")
    need(hashlib.sha256(text).hexdigest() == m["csv_sha256"], "SHA-256 of the CSV")
    rows, before, seqs = rows_of(text), None, []
    for n, row in enumerate(rows, 1):
        at, seq, index, org, trail = [value(v) for v in re.match((VALUE + b",") * 5, row)[0][:-1].split(b",")[:5]]
        need((org, trail) == (m["organization"], m["trail"]), "row %d: whose" % n)
        need(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", at), "row %d: time" % n)
        need(m["hour_start"][:-1] + ".000000Z" <= at < m["hour_end"][:-1] + ".000000Z", "row %d: hour" % n)
        need(re.fullmatch(r"0|[1-9]\d*", seq) and re.fullmatch(r"0|[1-9]\d*", index), "row %d: place" % n)
        now = (at, int(seq), int(index))
        need(before is None or before < now, "row %d: order" % n)
        before = now
        seqs.append(now[1])
    need(len(rows) == m["rows"] and min(seqs) == m["first_stream_seq"] and max(seqs) == m["last_stream_seq"], "count")
    need(root_of(rows) == m["merkle_root"], "Merkle root")


def verify(path, trusted):
    store = Archive(path) if path.endswith(".zip") else Store(path)
    keys, retired = ring(store, trusted)
    files = store.names - {"keys/%04d.rotation" % (i + 1) for i in range(len(retired))}
    if store.archive:
        need("RENDERED.json" not in files, "the archive was rendered: its files are not what is sealed")
        need("README.txt" in files, "README.txt")
        files -= {"seal.pub", "README.txt", "EMPTY.txt", "SHA256SUMS.txt"}
    else:
        files -= {"keys/0000.pub"}
    chains, hashes = {}, {}
    for name in sorted(f for f in files if f.endswith(".manifest")):
        text, signed = open_note(store.read(name), keys)
        m = canonical(text, FIELDS)
        start, end = instant(m["hour_start"]), instant(m["hour_end"])
        length = end - start
        need(length >= timedelta(seconds=1) and timedelta(days=1) % length == timedelta(0), "length of the hour")
        need((start - datetime(1970, 1, 1, tzinfo=timezone.utc)) % length == timedelta(0), "start of the hour")
        need(m["version"] == 1 and m["schema_version"] == 2 and m["trail"] in ("activity", "access"), "version or trail")
        need(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", m["organization"]), "organization")
        need(not re.fullmatch(r"(?i)keys|con|prn|aux|nul|(com|lpt)[0-9]", m["organization"]), "organization")
        layout = "%Y/%m/%d/%H" if length == timedelta(hours=1) else "%Y/%m/%d/%H-%M-%S"
        path = "%s/%s/%s" % (m["organization"], m["trail"], start.strftime(layout))
        need(name == path + ".manifest", "the manifest speaks of " + path)
        for entry in (name, path + ".csv.gz"):
            if store.archive and entry in store.names:
                need(store.times[entry] == (end.year, end.month, end.day, end.hour, end.minute, end.second // 2 * 2), entry + ": time")
        need(re.fullmatch(r"%d:[0-9a-f]{16}" % m["rows"], m["digest"]), "digest")
        generation = max(signed)
        need(generation >= len(retired) or start < retired[generation], "a key that was rotated away")
        files.discard(name)
        if m["rows"]:
            need(path + ".csv.gz" in files, path + ": no file")
            partition(m, store.read(path + ".csv.gz"))
            files.discard(path + ".csv.gz")
            hashes[path + ".csv"] = m["csv_sha256"]
        else:
            empty = dict(first_stream_seq=0, last_stream_seq=0, digest="0:" + "0" * 16, csv_bytes=0, csv_sha256="",
                         csv_crc32=0, file_bytes=0, file_sha256="", merkle_root=EMPTY)
            need(all(m[k] == v for k, v in empty.items()), "an empty hour that is not")
        chains.setdefault((m["organization"], m["trail"]), []).append((start, end, m, text, generation))
    if store.archive and hashes:
        sums = "".join("%s  %s\n" % (hashes[n], n) for n in sorted(hashes))
        need(store.read("SHA256SUMS.txt").decode() == sums, "SHA256SUMS.txt")
    need(not files, "files that no manifest speaks of: %s" % sorted(files))
    for chain in chains.values():
        chain.sort(key=lambda c: c[0])
        first = chain[0][2]
        need((first["number"] == 1) == (first["previous"] == "") and first["number"] >= 1, "first of the chain")
        for (_, end, m, text, g), (start, _, n, _, h) in zip(chain, chain[1:]):
            need(start == end and n["number"] == m["number"] + 1, "hole in the chain")
            need(n["previous"] == hashlib.sha256(text).hexdigest(), "link of the chain")
            need(h >= g, "an older key than before")


def main():
    trusted, failed = open(sys.argv[1]).read().strip(), 0
    for root in sys.argv[2:]:
        try:
            verify(root, trusted)
            print(root, "ok")
        except (Bad, ValueError, KeyError, TypeError, OSError, zlib.error, struct.error, zipfile.BadZipFile) as e:
            failed = 1
            print(root, "bad:", e)
    return failed


if __name__ == "__main__":
    sys.exit(main())
