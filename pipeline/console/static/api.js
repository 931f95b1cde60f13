// Asks the HTTP API, in the session of this browser.

// Problem is an answer that says what is wrong: faults by field where the API names fields.
export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail || body?.title || `HTTP ${status}`);
    this.status = status;
    this.faults = faults(body) ?? [{ text: this.message }];
  }
}

function faults(body) {
  const all = [];
  for (const e of body?.errors ?? []) {
    all.push({ field: e.location?.replace(/^(body|query|path)\.?/, ''), text: e.message });
  }
  if (all.length) return all;
  if (!body?.detail) return undefined;
  // Each fault is a line; it begins with the field's name.
  return body.detail.split('\n').map((line) => {
    const plain = line.replace(/^(refused: )?(sftp: )*(invalid configuration: )?/, '');
    const m = /^([a-z_]+(?:\.[a-z_]+)*(?:\[\d+\])?)(?:: | )/.exec(plain);
    return { field: m?.[1], text: plain };
  });
}

export async function request(method, path, body, headers = {}) {
  const init = { method, headers: { Accept: 'application/json', ...headers }, signal: headers.signal };
  delete init.headers.signal;
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers['Content-Type'] = 'application/json';
  }
  let answer;
  try {
    answer = await fetch(path, init);
  } catch (err) {
    if (err.name === 'AbortError') throw err;
    throw new Problem(0, { detail: document.documentElement.lang === 'ja' ? 'サーバーに接続できません' : 'The server can not be reached' });
  }
  if (answer.ok) return answer;
  let problem;
  try {
    problem = await answer.json();
  } catch {
    problem = undefined;
  }
  if (answer.status === 401 && path !== '/api/v1/session' && path !== '/api/v1/first') document.dispatchEvent(new Event('kansa:signed-out'));
  throw new Problem(answer.status, problem);
}

async function json(method, path, body, headers) {
  const answer = await request(method, path, body, headers);
  return answer.status === 204 ? undefined : answer.json();
}

export const get = (path, signal) => json('GET', path, undefined, { signal });
export const post = (path, body = undefined, signal = undefined) => json('POST', path, body, { signal });
export const put = (path, body, revision) => json('PUT', path, body, revision ? { 'If-Match': `"${revision}"` } : {});
export const del = (path) => json('DELETE', path);

export const of = (organization, ...rest) => ['/api/v1/organizations', organization, ...rest].map((p, i) => (i ? encodeURIComponent(p) : p)).join('/');
