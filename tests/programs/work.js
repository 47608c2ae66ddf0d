// Timers, workers that share memory, file streams, zlib in the thread pool, promises, garbage.
'use strict';
const { Worker, isMainThread, workerData, parentPort } = require('worker_threads');
const crypto = require('crypto');
const fs = require('fs');
const zlib = require('zlib');

if (!isMainThread) {
  const { shared, n, turns } = workerData;
  const cells = new Int32Array(shared);
  let digest = crypto.createHash('sha256');
  let turn = 0;
  const step = () => {
    for (let i = 0; i < 200; i++) {
      digest.update(JSON.stringify({ n, turn, i, list: Array.from({ length: 20 }, (_, k) => k * i) }));
      Atomics.add(cells, 0, i);
    }
    parentPort.postMessage({ turn });
    if (++turn < turns) setTimeout(step, turn % 4);
    else parentPort.postMessage({ done: digest.digest('hex') });
  };
  step();
} else {
  const turns = Number(process.argv[2]);
  const shared = new SharedArrayBuffer(64);
  const result = {};
  const worker = (n) => new Promise((resolve, reject) => {
    let messages = 0;
    const w = new Worker(__filename, { workerData: { shared, n, turns } });
    w.on('message', (m) => {
      if (m.done) result[`worker ${n}`] = m.done;
      else messages++;
    });
    w.on('error', reject);
    w.on('exit', (code) => { result[`worker ${n} end`] = [code, messages]; resolve(); });
  });
  const timers = () => new Promise((resolve) => {
    let ticks = 0;
    const t = setInterval(() => { if (++ticks === turns / 8) { clearInterval(t); result.ticks = ticks; resolve(); } }, 10);
  });
  const packed = async () => {
    let data = Buffer.alloc(1 << 18, 'stasis ');
    const digest = crypto.createHash('sha256');
    for (let i = 0; i < turns / 2; i++) {
      const small = await new Promise((y, n) => zlib.deflate(data, (e, d) => (e ? n(e) : y(d))));
      const big = await new Promise((y, n) => zlib.inflate(small, (e, d) => (e ? n(e) : y(d))));
      if (!big.equals(data)) throw new Error('zlib lost something');
      digest.update(small);
      data = Buffer.concat([data.subarray(1000), crypto.createHash('sha512').update(small).digest()]);
      await fs.promises.writeFile('scratch', small);
      digest.update(await fs.promises.readFile('scratch'));
    }
    result.packed = digest.digest('hex');
  };
  const garbage = async () => {
    let keep = new Map();
    let sum = 0;
    for (let i = 0; i < turns * 4; i++) {
      for (let k = 0; k < 500; k++) keep.set(k, { text: `${i} ${k}`.repeat(5), k });
      sum = (sum * 31 + keep.get(i % 500).text.length) % 1000003;
      if (i % 20 === 0) keep = new Map(keep);
      await new Promise(setImmediate);
    }
    result.garbage = sum;
  };
  fs.writeFileSync('ready', '');
  Promise.all([worker(1), worker(2), timers(), packed(), garbage()]).then(() => {
    result.shared = new Int32Array(shared)[0];
    fs.writeFileSync('out', Object.keys(result).sort().map((k) => `${k} ${result[k]}\n`).join(''));
    process.exitCode = 5;
  });
}
