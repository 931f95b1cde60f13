// An analyst's work with ClickHouse's client for Node: parameters, streaming, Parquet, the catalogue, refusals.
import assert from 'node:assert/strict';
import { createClient } from '@clickhouse/client';

const client = createClient({ url: process.env.KANSA_ADDRESS, username: process.env.KANSA_USER, password: process.env.KANSA_PASSWORD, database: process.env.KANSA_DATABASE, compression: { response: true } });
const rows = async (query, query_params) => (await client.query({ query, query_params, format: 'JSONEachRow' })).json();

assert.ok((await client.ping({ select: true })).success);
assert.deepEqual(await rows('SELECT organization, event FROM audit_events WHERE source = {source: String} AND occurred_at < {before: DateTime64(6)}', { source: 'audit', before: new Date() }), [{ organization: 'acme', event: 'report.published' }]);

let streamed = 0;
for await (const block of (await client.query({ query: 'SELECT number FROM numbers(200000)', format: 'JSONCompactEachRow' })).stream()) streamed += block.length;
assert.equal(streamed, 200000);

const { stream } = await client.exec({ query: 'SELECT * FROM audit_events FORMAT Parquet' });
const chunks = [];
for await (const chunk of stream) chunks.push(chunk);
assert.equal(Buffer.concat(chunks).subarray(0, 4).toString(), 'PAR1');

assert.equal((await (await client.query({ query: 'SELECT 1 AS n', format: 'JSON' })).json()).rows, 1);
assert.deepEqual((await rows('SHOW TABLES')).map((r) => r.name), ['audit_event_counts', 'audit_events']);
assert.ok((await rows("SELECT name FROM system.columns WHERE table = 'audit_events'")).length > 20);
await assert.rejects(client.insert({ table: 'audit_events', values: [{ source: 'x' }], format: 'JSONEachRow' }), { code: '164' });
await assert.rejects(rows("SELECT * FROM url('http://127.0.0.1:1/')"), { code: '497' });
await assert.rejects(client.query({ query: 'SELECT 1', clickhouse_settings: { use_query_cache: 1 } }), { code: '164' });
const abort = new AbortController();
const slow = client.query({ query: 'SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))', abort_signal: abort.signal });
setTimeout(() => abort.abort(), 50);
await assert.rejects(slow);
await client.close();
console.log('all passed');
