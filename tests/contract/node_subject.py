"""The cases of the conformance suite (see ``subjects.py``), written for Node."""

from __future__ import annotations

HANDLER = """
const fs = require('fs');
const net = require('net');

let calls = 0;

class ValueError extends Error {}
class Gone extends Error { permanent = true; }
class Later extends Error { retry_after_s = 2.5; }

exports.echo = async (event) => event;
exports.fails = async () => { throw new ValueError('no'); };
exports.gone = async () => { throw new Gone('never'); };
exports.later = async () => { throw new Later('busy'); };
exports.count = async () => ++calls;
exports.attempt = async (event, context) => [context.jobId, context.attempt];
exports.babbles = async () => 1n;
exports.env = async (event) => Object.fromEntries(event.map((name) => [name, process.env[name] ?? null]));
exports.names = async () => Object.keys(process.env).sort();
exports.large = async (event) => 'x'.repeat(event);
exports.prints = async () => { process.stderr.write('eins\\n'); process.stdout.write('grüße\\n'); };
exports.floods = async (event) => { for (let i = 0; i < event; i++) process.stderr.write('x'.repeat(1023) + '\\n'); };
exports.exits = async () => process.exit(3);
exports.killed = async () => process.kill(process.pid, 'SIGKILL');
exports.hangs = async () => { for (;;) ; };
exports.hoards = async () => Buffer.alloc(2 ** 30, 1).length;
exports.user = async () => [process.getuid(), process.getgid()];
exports.writes = async (event) => event.filter((path) => {
  try { fs.writeFileSync(path, 'x'); return true; } catch { return false; }
});
const reaches = (host, port) => new Promise((resolve) => {
  const socket = net.connect({ host, port, timeout: 1000 });
  const end = (is) => () => { socket.destroy(); resolve(is); };
  socket.on('connect', end(true)).on('error', end(false)).on('timeout', end(false));
});
exports.reaches = async (event) => {
  const found = [];
  for (const [host, port] of event) {
    if (await reaches(host, port)) found.push([host, port]);
  }
  return found;
};
exports.interfaces = async () => fs.readdirSync('/sys/class/net').sort();

const gates = {};
const meet = (name, of) => new Promise((resolve) => {
  const inside = (gates[name] ??= []);
  inside.push(resolve);
  if (inside.length === of) inside.forEach((go) => go());
});
exports.meets = exports.awaits = async (event, context) => {
  console.log('in', context.jobId);
  await meet('all', event);
  console.log('out', context.jobId);
  return [process.pid, context.jobId];
};
exports.parts = async (event) => {
  await meet('parts', 3);
  if (event === 'exit') process.exit(3);
  console.log('waits');
  await new Promise((resolve) => setTimeout(resolve, 60000));
};
"""
