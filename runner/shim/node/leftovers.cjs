'use strict';
// Are processes left over from a call? Then the sandbox must not serve another one, for they could reach into it.

const { readdirSync, readFileSync } = require('node:fs');

/** Ended children that nobody waited for keep a place in the process table each, and those are few. */
const MAX_ZOMBIES = 16;

class Leftovers {
  #expected;
  #parent;
  #isWhole;

  /** The worker, and the keeper, its parent. As child of process 1 the keeper is in a sandbox, and sees all of it. */
  constructor(workerPid, keeperPid) {
    this.#expected = new Set(['1', String(workerPid), String(keeperPid)]);
    this.#parent = String(workerPid);
    this.#isWhole = state(String(keeperPid))[1] === '1';
  }

  /** Why the sandbox cannot be used again; empty when nothing is left. Elsewhere only own children count. */
  trouble() {
    let zombies = 0;
    for (const pid of readdirSync('/proc')) {
      if (this.#expected.has(pid) || !/^\d+$/.test(pid)) {
        continue;
      }
      const [letter, parent] = state(pid);
      if (parent === this.#parent && letter === 'Z') {
        zombies += 1;
      } else if (letter !== 'X' && letter !== 'Z' && (parent === this.#parent || this.#isWhole)) {
        return parent === this.#parent ? 'left child processes running' : 'left detached processes running';
      }
    }
    return zombies > MAX_ZOMBIES ? `left ${zombies} ended child processes without waiting for them` : '';
  }
}

/** State letter and parent of a process; `['X', '']` when it is gone by now. */
function state(pid) {
  let text;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return ['X', ''];
  }
  // The name in parentheses may itself hold spaces and parentheses.
  const [letter, parent] = text.slice(text.lastIndexOf(')') + 2).split(' ', 2);
  return [letter, parent];
}

module.exports = { Leftovers };
