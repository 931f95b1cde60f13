// The chart of events over time. A stretch of it can be chosen with the pointer.
import { h, fill } from './dom.js';
import { t, time, minute, number } from './text.js';

let library;

// chart draws a histogram's answer; chosen is called with the ends of what was brushed.
export async function chart(box, histogram, chosen, signal) {
  if (document.body.dataset.charts !== 'true') return fill(box, h('p', { class: 'muted' }, t('chart.missing')));
  library ??= import('./uPlot.esm.js');
  const uPlot = (await library).default;
  if (signal.aborted) return;
  const width = histogram.width_seconds;
  const from = Math.floor(Date.parse(histogram.start) / 1000 / width) * width;
  const to = Date.parse(histogram.end) / 1000;
  const counts = new Map(histogram.bars.map((b) => [Date.parse(b.start) / 1000, b.events]));
  const xs = [], ys = [];
  for (let x = from; x < to && xs.length < 2000; x += width) {
    xs.push(x);
    ys.push(counts.get(x) ?? 0);
  }
  const color = (name) => {
    box.style.color = `var(${name})`;
    const rgb = getComputedStyle(box).color;
    box.style.color = '';
    return rgb;
  };
  const said = h('p', { class: 'said', 'aria-hidden': 'true' });
  const total = ys.reduce((a, b) => a + b, 0);
  const font = '11px system-ui, "Noto Sans JP", "Noto Sans CJK JP", sans-serif';
  const options = {
    width: Math.max(200, box.clientWidth), height: 116, legend: { show: false }, padding: [6, 4, 0, 0],
    scales: { x: { time: true, range: () => [from, Math.max(from + width, to)] }, y: { range: (_, __, most) => [0, Math.max(1, most * 1.08)] } },
    tzDate: (s) => (localStorage.getItem('kansa.zone') === 'utc' ? uPlot.tzDate(new Date(s * 1000), 'Etc/UTC') : new Date(s * 1000)),
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
    axes: [
      { stroke: color('--muted'), grid: { show: false }, ticks: { stroke: color('--line'), size: 4 }, font, size: 24, gap: 2, space: 96, values: (u, all, i, space, step) => labels(all, step) },
      { stroke: color('--muted'), grid: { stroke: color('--line'), width: 1 }, ticks: { show: false }, font, size: 44, space: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 1e8, 1e9], values: (u, all) => all.map((v) => short(v)) },
    ],
    series: [{}, { fill: color('--bar'), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.86, 60], align: 1 }) }],
    hooks: {
      setCursor: [(u) => {
        const i = u.cursor.idx;
        said.textContent = i === null || i === undefined || u.cursor.left < 0 ? '' : `${time(xs[i] * 1000)} · ${t('events.count', { n: number(ys[i]) })}`;
      }],
      setSelect: [(u) => {
        if (u.select.width < 3) return;
        const a = u.posToVal(u.select.left, 'x'), b = u.posToVal(u.select.left + u.select.width, 'x');
        u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        const snap = (v, f) => new Date(Math.max(from, f(v / width) * width) * 1000);
        chosen(snap(a, Math.floor), new Date(Math.min(snap(b, Math.ceil).getTime(), Math.max(Math.ceil(to), from + width) * 1000)));
      }],
    },
  };
  fill(box, said);
  box.setAttribute('role', 'img');
  box.setAttribute('aria-label', t('chart.label', { n: number(total), from: minute(from * 1000), to: minute(to * 1000) }));
  const plot = new uPlot(options, [xs, ys], box);
  const watch = new ResizeObserver(() => { if (box.clientWidth > 50 && Math.abs(box.clientWidth - plot.width) > 1) plot.setSize({ width: box.clientWidth, height: options.height }); });
  watch.observe(box);
  const end = () => { watch.disconnect(); plot.destroy(); };
  signal.addEventListener('abort', end);
  return end;
}

// labels say no more of a time than tells it apart from its neighbours.
function labels(all, step) {
  let day = '';
  return all.map((s) => {
    const text = time(s * 1000);
    const now = text.slice(0, 10);
    const clock = step < 60 ? text.slice(11) : text.slice(11, 16);
    const label = step >= 86400 * 28 ? now.slice(0, 7) : step >= 86400 ? now.slice(5) : now !== day && clock === '00:00' ? now.slice(5) : clock;
    day = now;
    return label;
  });
}

function short(v) {
  for (const [n, unit] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) if (v >= n) return `${number(v / n)}${unit}`;
  return String(v);
}
