// Works with the console as a person would, in a headless browser, and looks at what it sees. It ends with an error at
// the first thing that is not as it should be.
import { chromium } from 'playwright-core';
import { strict as assert } from 'node:assert';

const { URL: base, TOKEN, SHOTS, CHROMIUM, SFTP_HOST, SFTP_PORT, PRIVATE_KEY, AGE } = process.env;
const began = Date.now();
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'] });
const context = await browser.newContext({ viewport: { width: 1360, height: 860 }, locale: 'en-US', timezoneId: 'Europe/Berlin', permissions: ['clipboard-read', 'clipboard-write'], acceptDownloads: true });
context.setDefaultTimeout(20000);
const page = await context.newPage();

const wrong = [];
const refused = [];
page.on('pageerror', (e) => wrong.push(`page error: ${e.message}`));
page.on('console', (m) => {
  if (!['error', 'warning'].includes(m.type())) return;
  if (m.text().startsWith('Failed to load resource')) refused.push(`${m.text()} ${m.location().url}`);
  else wrong.push(`console: ${m.text()}`);
});
page.on('request', (r) => { if (!/^(blob:|data:)/.test(r.url()) && new URL(r.url()).origin !== base) wrong.push(`request to another host: ${r.url()}`); });
page.on('response', (r) => { if (r.status() >= 500) wrong.push(`${r.status()} ${r.url()}`); });

let n = 0;
async function shot(name, full = true) {
  if (full) await page.evaluate(() => scrollTo(0, 0));
  await page.screenshot({ path: `${SHOTS}/${String(++n).padStart(2, '0')}-${name}.png`, fullPage: full });
}
const step = (name) => console.log(`${((Date.now() - began) / 1000).toFixed(1)} s ${name}`);
const see = (text, options) => page.getByText(text, options).first().waitFor();
const fault = async (name, text) => {
  const f = page.locator(`[data-field="${name}"] .fault`).last();
  await f.waitFor();
  assert.match(await f.textContent(), text);
};
const nav = (name) => page.locator('header nav').getByRole('link', { name, exact: true }).click();
const idle = () => page.waitForFunction(() => document.querySelector('#main[data-page]:not([aria-busy])'));
const button = (name, options) => page.getByRole('button', { name, exact: true, ...options });
const toast = async (text) => {
  await page.locator('#toasts').getByText(text).first().waitFor();
};
// stored waits until a search shows so many events, which may take a while to be stored.
const stored = async (search, rows) => {
  for (const until = Date.now() + 60_000; ;) {
    await page.goto(base + search);
    await idle();
    if (await page.locator('table.events tbody tr').count() >= rows) return;
    if (Date.now() > until) throw new Error(`${search}: fewer than ${rows} events`);
    await page.waitForTimeout(200);
  }
};
const openMenu = (name) => page.locator('main summary').filter({ hasText: name }).first().click();

// audit looks for controls without a name and for text that is hard to read.
async function audit(where) {
  const found = await page.evaluate(() => {
    const bad = [];
    const visible = (e) => e.checkVisibility({ visibilityProperty: true });
    for (const e of document.querySelectorAll('input, select, textarea')) {
      if (visible(e) && !e.labels?.length && !e.getAttribute('aria-label')) bad.push(`no label: ${e.outerHTML.slice(0, 120)}`);
    }
    for (const e of document.querySelectorAll('button, a[href], summary')) {
      if (visible(e) && !(e.getAttribute('aria-label') || e.textContent.trim() || e.title)) bad.push(`no name: ${e.outerHTML.slice(0, 120)}`);
    }
    const ids = new Set();
    for (const e of document.querySelectorAll('[id]')) {
      if (ids.has(e.id)) bad.push(`id twice: ${e.id}`);
      ids.add(e.id);
    }
    if (document.querySelectorAll('h1').length !== 1) bad.push(`${document.querySelectorAll('h1').length} h1`);
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgb = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
    const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
    const light = ([r, g, b]) => [r, g, b].map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => { const all = []; for (let p = e; p; p = p.parentElement) all.push(rgb(getComputedStyle(p).backgroundColor)); return all.reverse().reduce((b, a) => over(a, b), [255, 255, 255, 1]); };
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const said = new Set();
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      const e = node.parentElement;
      if (!node.textContent.trim() || !visible(e) || e.closest('.hidden, :disabled, .u-wrap')) continue;
      const style = getComputedStyle(e);
      const b = behind(e), f = over(rgb(style.color), b);
      const [hi, lo] = [light(f), light(b)].sort((x, y) => y - x);
      const ratio = (hi + 0.05) / (lo + 0.05);
      if (ratio < 4.45 && !said.has(style.color + b)) {
        said.add(style.color + b);
        bad.push(`contrast ${ratio.toFixed(2)}: ${node.textContent.trim().slice(0, 40)} (${style.color} on ${b.map(Math.round)})`);
      }
    }
    if (document.documentElement.scrollWidth > innerWidth + 1) bad.push(`wider than the window: ${document.documentElement.scrollWidth} of ${innerWidth}: ${[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, nav')).slice(0, 3).map((e) => e.outerHTML.slice(0, 90)).join(' ')}`);
    return bad;
  });
  for (const f of found) wrong.push(`${where}: ${f}`);
}

async function postEvents(n) {
  const events = Array.from({ length: n }, (_, i) => ({ occurred_at: new Date().toISOString(), organization: 'acme', trail: 'activity', source: 'reports', event: 'report.live', action: 'publish', actor: { type: 'user', id: 'u-live', name: 'Live Person' }, description: `Live event <b>${i}</b>` }));
  const a = await fetch(`${base}/api/v1/events`, { method: 'POST', headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${process.env.PUBLISHER_KEY}` }, body: JSON.stringify(events) });
  assert.equal(a.status, 202, await a.text());
}

const scenes = {
  async 'first admin'() {
    await page.goto(`${base}/`);
    await see('Sign in to the audit trail');
    await audit('sign-in');
    await shot('sign-in');
    await page.goto(`${base}/first#${TOKEN}`);
    await button('Make admin and sign in').click();
    await fault('name', /Give your name/);
    await page.getByLabel('Name', { exact: true }).fill('root');
    await page.getByLabel('Password', { exact: true }).fill('short');
    await button('Make admin and sign in').click();
    await fault('password', /12 characters/);
    await page.getByLabel('Password', { exact: true }).fill('a long password');
    await page.getByLabel('Password once more').fill('another password');
    await button('Make admin and sign in').click();
    await fault('again', /differ/);
    await audit('first');
    await shot('first');
    await page.getByLabel('Password once more').fill('a long password');
    await page.keyboard.press('Enter');
    await page.locator('header nav').waitFor();
  },

  async events() {
    await page.locator('select.org').selectOption('acme');
    await page.locator('table.events tbody tr').nth(20).waitFor();
    await page.locator('.chart canvas').waitFor();
    await idle();
    assert.match(await page.locator('.count').textContent(), /[\d,]{3,} events/);
    await audit('events');
    await shot('events', false);

    // A filter by the menu; it stands in the address.
    await openMenu('Add filter');
    await page.getByLabel('Filter', { exact: true }).selectOption('outcome');
    await page.getByLabel('Value').selectOption('failure');
    await shot('events-add-filter', false);
    await button('Apply').first().click();
    await page.locator('.chip').getByText('failure').waitFor();
    assert.match(page.url(), /outcome=failure/);
    await page.locator('table.events tbody tr').first().waitFor();
    for (const text of await page.locator('td.c-outcome').allTextContents()) assert.equal(text, 'failure');
    await openMenu('Saved searches');
    await button('Save this search').click();
    await page.locator('dialog').getByRole('button', { name: 'Save', exact: true }).click();
    await fault('name', /Give it a name/);
    await page.locator('dialog').getByLabel('Name').fill('What failed');
    await page.keyboard.press('Enter');
    await toast('What failed');
    await page.locator('.chip').getByRole('button').click();
    await page.locator('.chip').waitFor({ state: 'detached' });
    await openMenu('Saved searches');
    await page.getByRole('link', { name: 'What failed' }).click();
    await page.locator('.chip').getByText('failure').waitFor();
    await page.goBack();
    await page.locator('.chip').waitFor({ state: 'detached' });

    // Text, and the detail with a change.
    await idle();
    await page.keyboard.press('/');
    await page.keyboard.type('owner');
    await page.keyboard.press('Enter');
    await page.waitForURL(/text=owner/);
    await idle();
    await page.locator('table.events tbody tr').first().waitFor();
    await page.locator('body').click({ position: { x: 2, y: 300 } });
    await page.keyboard.press('j');
    await page.keyboard.press('j');
    await page.keyboard.press('Enter');
    await page.locator('.detail table.diff').waitFor();
    assert.equal(await page.locator('.detail table.diff tbody tr').count(), 2);
    await page.locator('.detail summary').filter({ hasText: 'Whole event' }).click();
    await audit('detail');
    await shot('event-detail', false);
    const id = new URL(page.url()).searchParams.get('id');
    const [download] = await Promise.all([page.waitForEvent('download'), button('Download proof').click()]);
    assert.equal(download.suggestedFilename(), `${id}.proof`);
    await button('Copy link').click();
    await toast('Copied');
    const link = await page.evaluate(() => navigator.clipboard.readText());
    await page.keyboard.press('Escape');
    await page.locator('.detail').waitFor({ state: 'hidden' });
    await page.goto(link);
    await page.locator('.detail').getByText(id).first().waitFor();
    await page.keyboard.press('Escape');

    // Time: presets, own times and their errors, the brush.
    await openMenu('All time');
    await button('Last 24 hours').click();
    await page.locator('main summary').filter({ hasText: 'Last 24 hours' }).waitFor();
    await idle();
    await openMenu('Last 24 hours');
    await button('Apply').last().click();
    await see('Give a start or an end');
    await page.getByLabel(/^From/).fill('2026-01-02T00:00');
    await page.getByLabel(/^To/).fill('2026-01-01T00:00');
    await button('Apply').last().click();
    await see('The end has to be after the start');
    await shot('events-time', false);
    await page.keyboard.press('Escape');
    await page.locator('.chart canvas').waitFor();
    const over = await page.locator('.chart .u-over').boundingBox();
    await page.mouse.move(over.x + over.width * 0.3, over.y + 40);
    await page.mouse.down();
    await page.mouse.move(over.x + over.width * 0.5, over.y + 40, { steps: 4 });
    await page.mouse.up();
    await page.waitForURL(/start=.*end=/);
    await idle();
    await page.locator('table.events tbody tr').first().waitFor();
    await shot('events-brushed', false);

    // Columns.
    await openMenu('Columns');
    await page.getByLabel('IP address').check();
    await page.locator('th.c-ip').waitFor();
    await button('Back to the default').click();
    await page.locator('th.c-ip').waitFor({ state: 'detached' });
    await page.keyboard.press('Escape');

    // Nothing found.
    await page.goto(`${base}/events?org=acme&text=nowhere-to-be-found`);
    await see('No event in this time fits the search');
    await shot('events-none', false);
    await button('Search all time').click();
    await page.waitForURL(/range=all/);
    await idle();

    // Live.
    await page.goto(`${base}/events?org=acme&range=15m`);
    await idle();
    await page.keyboard.press('l');
    await page.locator('.live[aria-pressed="true"]').waitFor();
    await page.waitForTimeout(700);
    await postEvents(7);
    await page.locator('tr.fresh').getByText('Live event <b>6</b>').waitFor();
    await shot('events-live', false);
    await page.keyboard.press('l');

    // What is found, as a file.
    await openMenu('Export');
    await shot('events-export', false);
    const [csv] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: /as CSV/ }).click()]);
    assert.equal(csv.suggestedFilename(), 'audit-acme.csv');
    await button('Export this time as an archive…').click();
    await page.waitForURL(/\/exports\?/);
  },

  async exports() {
    await page.goto(`${base}/exports?org=acme`);
    await idle();
    await page.getByLabel('Activity').uncheck();
    await page.getByLabel('Access', { exact: true }).uncheck();
    await button('Start export').click();
    await fault('trails', /one trail/);
    await fault('mail_to', /one mail address/);
    await page.getByLabel('Activity').check();
    await page.getByLabel('Mail addresses').fill('auditor@example.com, nonsense');
    await button('Start export').click();
    await fault('mail_to', /nonsense/);
    await shot('exports-errors');
    await page.getByLabel('Mail addresses').fill('auditor@example.com');
    // The hours of this test are two seconds long.
    const local = (at) => new Intl.DateTimeFormat('sv-SE', { timeZone: 'Europe/Berlin', dateStyle: 'short', timeStyle: 'medium' }).format(at).replace(' ', 'T');
    await page.getByLabel(/^From/).fill(local(new Date(began - 3600e3)));
    await page.getByLabel(/^To/).fill(local(new Date(Date.now() - 6000)));
    await page.getByLabel(/^To/).blur();
    await page.locator('.tile').getByText('left today, Activity').waitFor();
    await audit('exports');
    await button('Start export').click();
    await toast('under way');
    await page.locator('.entry .badge.ok').first().waitFor({ timeout: 15000 });
    await see('The link is valid until');
    await shot('exports');
    await button('Start export').click();
    await toast('costs nothing');
    // What the archive holds: each choice shows what belongs to it, and what is wrong is told before anything is started.
    await page.locator('summary').filter({ hasText: 'Format, filter' }).click();
    await page.getByLabel('Format', { exact: true }).selectOption('cef');
    await page.getByLabel('Values too long for CEF').waitFor();
    assert.ok(!await page.getByLabel('Column names').isVisible());
    await page.getByLabel('Values too long for CEF').selectOption('text');
    await page.getByLabel('Public keys of age').fill('age1nonsense');
    await page.getByLabel('Public keys of age').blur();
    await fault('age_recipients', /age1nonsense/);
    await shot('exports-content');
    await page.getByLabel('Public keys of age').fill(AGE);
    await page.getByLabel('Outcome', { exact: true }).selectOption('failure');
    await page.getByLabel('Outcome', { exact: true }).blur();
    await page.locator('.tile').getByText('size before it is rendered').waitFor();
    await audit('exports content');
    await button('Start export').click();
    await toast('under way');
    await page.locator('.entry').first().getByText('CEF, filtered, encrypted').waitFor();
    await page.locator('.entry').first().locator('.badge.ok').waitFor({ timeout: 60000 });
    assert.match(await page.locator('.entry').first().textContent(), /\.cef\.zip\.age/);
    // The bar of one that is under way: the real answer, caught in the middle.
    const doing = async (change, text, value) => {
      await page.route('**/organizations/acme/exports', async (route) => {
        if (route.request().method() !== 'GET') return route.continue();
        const answer = await route.fetch();
        const all = await answer.json();
        Object.assign(all[0], { state: 'running' }, change(all[0]));
        await route.fulfill({ response: answer, json: all });
      });
      await page.goto(`${base}/exports?org=acme`);
      await see(text);
      const bar = page.locator('.entry progress').first();
      assert.ok(Math.abs(await bar.evaluate((b) => b.position) - value) < 0.01);
      await audit('exports, one under way');
      await shot('exports-under-way');
      await page.unrouteAll({ behavior: 'wait' }); // one may be on its way
    };
    await doing((e) => ({ sent: Math.round(e.bytes * 0.42) }), /4[12] % · .* \/ /, 0.42);
    await doing(() => ({ bytes: undefined, rows_rendered: 2500, rows_to_render: 10000 }), 'Rendering: 25 % · 2,500 of 10,000 events', 0.25);
    await page.goto(`${base}/exports?org=acme`);
    await page.locator('.entry').first().waitFor();
    await button('Revoke link').first().click();
    await shot('exports-revoke', false);
    await page.locator('dialog').getByRole('button', { name: 'Revoke link' }).click();
    await toast('The link is revoked');
    await see('The link was revoked on');
  },

  async destinations() {
    await page.goto(`${base}/destinations?org=acme`);
    await see('There is none yet');
    await page.getByRole('link', { name: 'New destination' }).click();
    await button('Test connection and save').click();
    await fault('name', /no name of a destination/);
    await fault('host', /empty/);
    await fault('user', /empty/);
    await fault('password', /password or a private key/);
    await page.getByLabel('Name', { exact: true }).fill('nightly');
    await page.getByLabel('Server', { exact: true }).fill('sftp://wrong');
    await page.getByLabel('User', { exact: true }).fill('kansa');
    await page.getByLabel('Password', { exact: true }).fill('archive-password');
    await page.getByLabel('Port').fill('99999');
    await button('Test connection and save').click();
    await fault('port', /99999/);
    await page.getByLabel('Port').fill(SFTP_PORT);
    await button('Test connection and save').click();
    await fault('host', /sftp\.example\.com/); // what the API says, beside its field
    await shot('destination-errors');
    await page.getByLabel('Server', { exact: true }).fill(SFTP_HOST);
    await page.getByLabel('Path', { exact: true }).fill('/');
    await see(/Every day at 01:15 \(UTC\)/);
    await page.locator('summary').filter({ hasText: 'Algorithms' }).click();
    await page.getByLabel('diffie-hellman-group14-sha1', { exact: true }).waitFor();
    await see('legacy');
    await audit('destination form');
    await shot('destination-new');
    await button('Test connection and save').click();
    await see('Nothing is saved.');
    await shot('destination-unknown-host-key');
    await button(/^Trust host key/, { exact: false }).click();
    await page.waitForURL(/name=nightly/);
    await page.locator('ol.steps li.good').first().waitFor();
    await see('Atomic rename');
    await idle();
    assert.ok(await page.getByLabel('Server', { exact: true }).isDisabled());
    await shot('destination-saved');
    await button('Edit').click();
    await page.getByLabel('When', { exact: true }).selectOption('cron');
    await page.getByLabel('Cron').fill('never');
    await see(/cron "never"/);
    await button('Test connection and save').click();
    await page.locator('[data-field="cron"] .fault, main > form .note.error').first().waitFor();
    await page.getByLabel('When', { exact: true }).selectOption('every');
    await page.getByLabel('In equal intervals').fill('6h');
    await page.getByLabel('An archive holds').fill('6h');
    await see('Every 6 hours');
    await button('Test connection and save').click();
    await toast('Saved');
    await idle();
    await button('Test connection').click();
    await page.locator('ol.steps li.good').first().waitFor();
    await button('Pause').click();
    await toast('Paused');
    await idle();
    await button('Resume').click();
    await toast('Resumed');
    await idle();

    // Somebody else changes it meanwhile: who saves later is told.
    await button('Edit').click();
    await page.evaluate(async () => {
      const path = '/api/v1/organizations/acme/destinations/nightly/pause';
      await fetch(path, { method: 'POST' });
      await fetch(path.replace('pause', 'resume'), { method: 'POST' });
    });
    await button('Test connection and save').click();
    await see('Somebody changed this meanwhile');
    await shot('destination-changed-meanwhile');

    // Another one signs in with a private key.
    await page.goto(`${base}/destinations?org=acme&new=1`);
    await page.getByLabel('Name', { exact: true }).fill('with-key');
    await page.getByLabel('Server', { exact: true }).fill(SFTP_HOST);
    await page.getByLabel('User', { exact: true }).fill('kansa');
    await page.getByLabel('Port').fill(SFTP_PORT);
    await page.getByLabel('Path', { exact: true }).fill('/');
    await page.locator('summary').filter({ hasText: /private key/i }).click();
    await page.getByLabel('Private key', { exact: true }).fill('-----BEGIN nonsense-----');
    await page.getByLabel('When', { exact: true }).selectOption('manual');
    await button('Test connection and save').click();
    await fault('private_key', /private_key/);
    await page.getByLabel('Private key', { exact: true }).fill(PRIVATE_KEY);
    await button('Test connection and save').click();
    await see('Nothing is saved.');
    await button(/^Trust host key/, { exact: false }).click();
    await page.waitForURL(/name=with-key/);
    await page.locator('ol.steps li.good').first().waitFor();
    await idle();
    assert.ok(!(await page.content()).includes('BEGIN OPENSSH PRIVATE KEY-----\n'));
    await shot('destination-private-key');
    await button('Remove destination').click();
    await page.locator('dialog').getByRole('button', { name: 'Remove destination' }).click();
    await toast('is removed');

    await page.goto(`${base}/destinations?org=acme&new=1`);
    await page.getByLabel('Name', { exact: true }).fill('to-auditor');
    await page.getByLabel('Kind', { exact: true }).selectOption('mail');
    await page.getByLabel('Mail addresses', { exact: true }).fill('nobody');
    await button('Test connection and save').click();
    await fault('mail', /nobody/);
    await page.getByLabel('Mail addresses', { exact: true }).fill('auditor@example.com');
    await page.getByLabel('When', { exact: true }).selectOption('manual');
    await button('Test connection and save').click();
    await page.waitForURL(/name=to-auditor/);

    await page.goto(`${base}/destinations?org=acme&new=1`);
    await page.getByLabel('Name', { exact: true }).fill('second-mailbox');
    await page.getByLabel('Kind', { exact: true }).selectOption('bucket');
    await page.getByLabel('Address of the bucket').fill('file:///nowhere/at/all');
    await button('Test connection and save').click();
    await fault('bucket', /only the operator/);
    await page.getByLabel('Address of the bucket').fill('s3://archives?region=eu-central-1');
    await button('Test connection and save').click();
    await fault('bucket_key_id', /give the access key/);
    await page.getByLabel('Kind', { exact: true }).selectOption('mail');
    await page.getByLabel('Mail addresses', { exact: true }).fill('auditor@example.com');
    await page.getByLabel('When', { exact: true }).selectOption('manual');
    await button('Test connection and save').click();
    await page.waitForURL(/name=second-mailbox/);
    await button('Remove destination').click();
    await page.locator('dialog').getByRole('button', { name: 'Remove destination' }).click();
    await toast('is removed');
    await page.locator('.entry').first().waitFor();
    await page.locator('.entry').getByText('delivering', { exact: true }).waitFor({ timeout: 500 }).catch(() => {});
    await audit('destinations');
    await shot('destinations');
  },

  async organization() {
    await nav('Trails & retention');
    await see('these are the defaults');
    // The switches, by the keyboard: off takes a reason; what HIPAA holds on is not switched.
    const trail = (name) => page.getByRole('switch', { name });
    await see('both trails were on all the time');
    await trail('Record Access').focus();
    await page.keyboard.press('Space');
    await see('Stop recording Access?');
    await page.locator('dialog').getByRole('button', { name: 'Stop recording' }).click();
    await fault('reason', /Say why/);
    await shot('trails-off-dialog', false);
    await page.keyboard.type('Privacy review');
    await page.locator('dialog').getByRole('button', { name: 'Stop recording' }).click();
    await toast('Saved');
    await page.locator('[data-switch="access"][aria-checked="false"]').waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.dataset.switch), 'access');
    await see('not recorded');
    await see('Privacy review');
    await page.locator('td .badge').getByText('still off').waitFor();
    await audit('trails off');
    await shot('trails-off');
    await page.keyboard.press('Enter');
    await page.locator('dialog').getByRole('button', { name: 'Record again' }).click();
    await page.locator('[data-switch="access"][aria-checked="true"]').waitFor();
    await trail('The organization is under HIPAA').click();
    await page.locator('dialog').getByRole('button', { name: 'Set HIPAA' }).click();
    await see('holds the trails on');
    assert.ok(await trail('Record Access').isDisabled() && await trail('Record Activity').isDisabled());
    await audit('trails held');
    await shot('trails-hipaa');
    await trail('The organization is under HIPAA').click();
    await page.locator('dialog').getByRole('button', { name: 'Take back HIPAA' }).click();
    await page.locator('[data-switch="hipaa"][aria-checked="false"]').waitFor();
    await button('Edit').click();
    await page.getByLabel('Days', { exact: true }).fill('0');
    await page.getByLabel('Keep everything').check();
    await button('Save').click();
    await fault('retention_days', /"0"/);
    await fault('hold.reason', /Say why/);
    await shot('organization-errors');
    await page.getByLabel('Days', { exact: true }).fill('400');
    await page.getByLabel('Size in GiB').fill('50');
    await page.getByLabel('Reason', { exact: true }).fill('Case 2026-17');
    await button('Save').click();
    await toast('Saved');
    await see('in force');
    await audit('organization');
    await shot('organization');
    await button('Edit').click();
    await page.getByLabel('Keep everything').uncheck();
    await button('Save').click();
    await page.locator('.badge.warn').waitFor({ state: 'detached' });
    await page.goto(`${base}/organization?org=kansa`);
    await see("can't be switched off");
    assert.ok(await trail('Record Access').isDisabled());
    await page.goto(`${base}/events?org=acme`);
    await idle();
  },

  async access() {
    await nav('Access');
    await button('New user').click();
    await page.locator('dialog').getByLabel('Name').fill('no good');
    await page.locator('dialog').getByLabel('Password').fill('short');
    await page.locator('dialog').getByRole('button', { name: 'Save' }).click();
    await fault('name', /no good/);
    await fault('password', /12 characters/);
    await shot('access-user-errors', false);
    await page.locator('dialog').getByLabel('Name').fill('aiko');
    await page.locator('dialog').getByLabel('Password').fill('aikos password');
    await page.locator('dialog').getByRole('button', { name: 'Save' }).click();
    await toast('Saved');
    await page.locator('table').getByText('aiko').first().waitFor();
    await idle();
    await button('New key').click();
    await page.locator('dialog').getByLabel('Valid for days').fill('0');
    await page.locator('dialog').getByLabel('Name').fill('reports');
    await page.locator('dialog').getByRole('button', { name: 'Make key' }).click();
    await fault('days', /"0"/);
    await page.locator('dialog').getByLabel('Valid for days').fill('30');
    await page.locator('dialog').getByRole('button', { name: 'Make key' }).click();
    const secret = await page.locator('[data-secret]').textContent();
    assert.match(secret, /^kansa_[\w-]{43}$/);
    await shot('access-key', false);
    await page.locator('dialog').getByRole('button', { name: 'Close' }).click();
    await page.locator('table').getByText('reports').first().waitFor();
    assert.ok(!(await page.content()).includes(secret));
    await idle();
    await audit('access');
    await shot('access');
    await page.locator('tr', { hasText: 'reports' }).getByRole('button', { name: 'Revoke key' }).click();
    await page.locator('dialog').getByRole('button', { name: 'Revoke key' }).click();
    await toast('is revoked');
    await idle();
    await button('New analyst').click();
    await page.locator('dialog').getByLabel('Name').fill('ann');
    await page.locator('dialog').getByRole('button', { name: 'Add analyst' }).click();
    const password = await page.locator('[data-secret]').textContent();
    assert.match(password, /^[A-Z2-7]{52}$/);
    await page.locator('dialog').getByText('acme.ann').waitFor();
    await audit('an analyst');
    await shot('access-analyst', false);
    await page.locator('dialog').getByRole('button', { name: 'Close' }).click();
    await page.locator('table').getByText('acme.ann').waitFor();
    assert.ok(!(await page.content()).includes(password));
    await idle();
    await button('Remove').last().click();
    await page.locator('dialog').getByRole('button', { name: 'Remove analyst' }).click();
    await toast('acme.ann was removed');
  },

  async system() {
    await nav('System');
    await see('events stored since the start');
    await see('AUDIT', { exact: true });
    await page.locator('.roles li').filter({ hasText: 'writer' }).getByText('/s').waitFor();
    assert.equal(await page.locator('.roles li').count() >= 5, true);
    // Dead letters: by their reason, with their bytes, mended and replayed.
    await page.locator('#dead tbody tr').nth(1).waitFor();
    await audit('system');
    await shot('system');
    await page.locator('#dead details.letter').filter({ hasText: 'occurred_at' }).first().locator('summary').click();
    await page.locator('#dead pre').getByText('yesterday').waitFor();
    await button('Hexadecimal').click();
    await page.locator('#dead pre').getByText('000000  7b 22').waitFor();
    await shot('dead-letter');
    await audit('dead letter');
    await button('Mend and replay').click();
    await page.locator('dialog').getByLabel('Bytes').fill('');
    await page.locator('dialog').getByRole('button', { name: 'Replay' }).click();
    await fault('data', /Write what/);
    await page.locator('dialog').getByLabel('Bytes').fill(JSON.stringify({ occurred_at: new Date().toISOString(), organization: 'acme', trail: 'activity', source: 'mended', event: 'mended.event', action: 'mend' }));
    await page.locator('dialog').getByRole('button', { name: 'Replay' }).click();
    await toast('Replayed: 1');
    const letters = page.locator('#dead details.letter');
    await page.waitForFunction(() => document.querySelectorAll('#dead details.letter').length === 2);
    await letters.first().locator('summary').click();
    await letters.first().locator('pre').waitFor();
    assert.ok(!(await page.content()).includes('<script>alert'));
    const [bytes] = await Promise.all([page.waitForEvent('download'), letters.first().getByRole('link', { name: 'Download' }).click()]);
    assert.match(bytes.suggestedFilename(), /^deadletter-\d+$/);
    await page.locator('#dead tbody button.open').first().click();
    await page.locator('#dead tbody tr[aria-selected="true"]').waitFor();
    await button('Replay all').first().click();
    await Promise.all([ // the toast of the one before may still be there
      page.waitForResponse((r) => r.url().endsWith('/deadletters/replay') && r.ok()),
      page.locator('dialog').getByRole('button', { name: 'Replay all' }).click(),
    ]);
    await toast('Came back as dead letters: 1.'); // in red: nothing has changed
    await page.locator('#toasts .note.error').getByText('Came back').waitFor();
    await button('Correct all').first().click();
    await page.locator('dialog').getByRole('button', { name: 'Replay' }).click();
    await fault('set', /Name a field/);
    await page.locator('dialog').getByRole('button', { name: 'Cancel' }).click();
    await button('Discard all').first().click();
    await page.locator('dialog').getByRole('button', { name: 'Discard' }).click();
    await fault('why', /Say why/);
    await page.locator('dialog').getByLabel('Reason').fill('noise');
    await page.locator('dialog').getByRole('button', { name: 'Discard' }).click();
    await toast('Discarded: 1');
    await stored('/events?org=acme&range=15m&event=mended.event', 1);
    await stored('/events?org=acme&range=15m&event=deadletter.replayed', 2);
  },

  async integrity() {
    const id = await page.evaluate(async () => (await (await fetch('/api/v1/audit/events?organization=acme&order=recorded&limit=1')).json()).events[0].id);
    await nav('Integrity');
    await see('Head of the chain');
    // The trails' hours come one after the other.
    await page.locator('.hours').first().locator('i.s-sealed').first().waitFor();
    await page.locator('.hours').first().focus();
    await page.keyboard.press('ArrowLeft');
    // Back to one that is sealed: how many are not yet depends on how busy the machine is.
    const chosen = page.locator('.chosen').first();
    for (let i = 0; i < 60 && !/manifest \d/.test(await chosen.textContent()); i++) await page.keyboard.press('ArrowLeft');
    await chosen.getByText(/manifest \d/).waitFor();
    await page.keyboard.press('ArrowLeft');
    assert.equal(await page.locator('.hours i.at').count(), 1);
    await page.getByLabel('Your own copy of the key').fill('nonsense');
    await button('Verify now').click();
    await fault('key', /nonsense/);
    const key = await page.locator('dl.facts .hash').filter({ hasText: /^kansa\+/ }).first().textContent();
    await page.getByLabel('Your own copy of the key').fill(key);
    await button('Verify now').click();
    await see('everything holds', { exact: true });
    assert.match(await page.locator('#main').textContent(), /\d+ hours, [\d,]+ events/);
    await page.getByLabel('Id of the event').fill('nonsense');
    await button('Download proof').click();
    await fault('event', /is no id/);
    await page.getByLabel('Id of the event').fill(id);
    const [file] = await Promise.all([page.waitForEvent('download'), button('Download proof').click()]);
    assert.equal(file.suggestedFilename(), `${id}.proof`);
    await audit('integrity');
    await shot('integrity');
    await page.locator('button[aria-label="Earlier hours"]').first().click();
    await page.locator('.hours').first().locator('i.s-none').first().waitFor();
  },

  // Everything that a keyboard has to do: pages by number, a search, an event, the list of keys.
  async keyboard() {
    await page.goto(`${base}/events?org=acme`);
    await page.locator('table.events tbody tr').nth(3).waitFor();
    await idle();
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.className), 'skip');
    await page.keyboard.press('Enter');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
    for (let i = 0; i < 3; i++) await page.keyboard.press('j');
    await page.keyboard.press('k');
    await page.keyboard.press('Enter');
    await page.locator('.detail').waitFor();
    const first = page.url();
    await page.keyboard.press('j');
    await page.waitForFunction((was) => location.href !== was, first);
    await page.keyboard.press('Escape');
    await page.locator('.detail').waitFor({ state: 'hidden' });
    await page.keyboard.press('?');
    await page.locator('dialog').getByText('Go to a page').waitFor();
    await page.keyboard.press('Escape');
    await page.locator('dialog').waitFor({ state: 'detached' });
    for (const [key, path] of [['2', 'integrity'], ['3', 'exports'], ['1', 'events']]) {
      await page.keyboard.press(key);
      await page.waitForURL(new RegExp(`/${path}`));
      await idle();
    }
  },

  async 'every page in Japanese, dark, on a phone'() {
    await page.locator('header summary').click();
    await shot('menu', false);
    await page.getByLabel('Language').selectOption('ja');
    await page.locator('header nav').getByText('イベント').waitFor();
    await idle();
    const all = ['events?org=acme&range=7d', 'exports?org=acme', 'destinations?org=acme', 'destinations?org=acme&name=nightly', 'destinations?org=acme&new=1', 'organization?org=acme', 'integrity?org=acme', 'access?org=acme', 'system?org=acme'];
    for (const [theme, width, height] of [['', 1360, 860], ['dark', 390, 844]]) {
      await page.setViewportSize({ width, height });
      await context.addCookies([{ name: 'kansa_theme', value: theme || 'system', url: base }]);
      for (const p of all) {
        await page.goto(`${base}/${p}`);
        await page.locator('main h1').waitFor({ state: 'attached' });
        await idle();
        await page.waitForTimeout(p.startsWith('system') ? 300 : 60);
        const name = p.replace(/[?&]org=acme/, '').replace(/\W+/g, '-');
        await audit(`${p} ${theme} ${width}`);
        const english = await page.evaluate(() => (document.querySelector('main').innerText.match(/\b(the|your|with|and|from)\b/gi) ?? []).length);
        if (english && !/^events|^access|^system/.test(p)) wrong.push(`${p} in Japanese has English words`);
        await shot(`ja-${theme || 'light'}-${name}`, !p.startsWith('events'));
        if (p.startsWith('events')) {
          await page.locator('table.events tbody tr button.open').first().click();
          await page.locator('.detail').waitFor();
          await audit(`detail ${theme} ${width}`);
          await shot(`ja-${theme || 'light'}-detail`, false);
        }
      }
    }
    // Dark and wide, in English.
    await page.setViewportSize({ width: 1360, height: 860 });
    await context.addCookies([{ name: 'kansa_lang', value: 'en', url: base }]);
    await page.goto(`${base}/events?org=acme`);
    await page.locator('.chart canvas').waitFor();
    await idle();
    await audit('events dark');
    await shot('events-dark', false);
    await page.goto(`${base}/destinations?org=acme`);
    await idle();
    await shot('destinations-dark');
    await context.addCookies([{ name: 'kansa_theme', value: 'light', url: base }]);
  },

  async 'an auditor of one organization'() {
    await page.goto(`${base}/events`);
    await page.locator('header summary').click();
    await button('Sign out').click();
    await see('Sign in to the audit trail');
    await button('Sign in').click();
    await fault('name', /Give your name/);
    await page.getByLabel('Name').fill('aiko');
    await page.getByLabel('Password').fill('wrong password');
    await page.keyboard.press('Enter');
    await see('not known together');
    await shot('sign-in-refused');
    await page.getByLabel('Password').fill('aikos password');
    await page.keyboard.press('Enter');
    await page.locator('span.org').getByText('acme').waitFor();
    assert.equal(await page.locator('header nav a').count(), 5);
    await page.locator('table.events tbody tr').first().waitFor();
    await idle();
    await page.goto(`${base}/destinations?name=nightly`);
    await page.getByLabel('Server', { exact: true }).waitFor();
    assert.equal(await button('Edit').count(), 0);
    await page.goto(`${base}/access`);
    await see('Users and keys are for admins');
    // The session ends elsewhere.
    await context.clearCookies({ name: 'kansa_session' });
    await nav('Exports');
    await see('Your session has ended');
    await page.getByLabel('Name').waitFor();
  },
};

try {
  for (const [name, scene] of Object.entries(scenes)) {
    step(name);
    await scene();
  }
} catch (err) {
  await shot('failed').catch(() => {});
  wrong.push(`${err.stack}\nat ${page.url()}`);
}
await browser.close();
step('end');
// What was refused was meant to be: a name or password, an hour that is open, a setting that is wrong.
for (const r of refused) if (!/status of (400|401|409|412|422)/.test(r)) wrong.push(r);
if (wrong.length) {
  console.log(wrong.join('\n'));
  process.exit(1);
}
