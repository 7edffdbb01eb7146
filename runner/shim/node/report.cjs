'use strict';
// What went wrong in user code, as the `error` frame's meta.

const { pathToFileURL } = require('node:url');

const MESSAGE_CHARS = 4096;
const TRACEBACK_CHARS = 16 * 1024;
const MAX_CAUSES = 8;
const SHIM = [__dirname + '/', String(pathToFileURL(__dirname + '/'))];

/**
 * `type`, `message` and `traceback` of what was thrown, plus `permanent` and `retry_after_s` if it has them. Never
 * throws, whatever user code made of its error: properties may be getters, and the whole may be a proxy.
 */
function describe(error, where) {
  const answer = { type: 'Error', message: '' };
  try {
    answer.type = clip(typeOf(error), 200);
    answer.message = clip(messageOf(error, where), MESSAGE_CHARS);
    if (isObject(error)) {
      answer.traceback = clip(traceback(error), TRACEBACK_CHARS);
      if (error.permanent) {
        answer.permanent = true;
      }
      const seconds = error.retry_after_s ?? error.retryAfterS;
      if (typeof seconds === 'number' && seconds >= 0 && seconds < Infinity) {
        answer.retry_after_s = seconds;
      }
    }
  } catch (e) {
    const name = e instanceof Error ? e.constructor.name : typeof e;
    answer.message = clip(`${answer.message} (describing the error failed: ${name})`, MESSAGE_CHARS).trim();
  }
  return answer;
}

function isObject(value) {
  return (typeof value === 'object' && value !== null) || typeof value === 'function';
}

/** An error's name, or its class's where the name is only inherited from Error. */
function typeOf(error) {
  if (!isObject(error)) {
    return 'NotAnError';
  }
  if (typeof error.type === 'string' && error.constructor.name === 'Refused') {
    return error.type;
  }
  const name = error.name;
  if (typeof name === 'string' && name !== '' && name !== 'Error') {
    return name;
  }
  return (error.constructor && typeof error.constructor.name === 'string' && error.constructor.name) || 'Error';
}

function messageOf(error, where) {
  if (!isObject(error)) {
    return `${shown(error)} was thrown ${where}; throw an Error instead`;
  }
  return typeof error.message === 'string' ? error.message : `an object without a message was thrown ${where}`;
}

function shown(value) {
  return typeof value === 'string' ? JSON.stringify(value.slice(0, 200)) : String(value);
}

/** The stack as Node prints it, without the frames of the shim and of Node itself; with the causes below. */
function traceback(error) {
  const parts = [];
  for (let at = error; isObject(at) && typeof at.stack === 'string' && parts.length < MAX_CAUSES; at = at.cause) {
    parts.push(at.stack.split('\n').filter(isOfUser).join('\n'));
  }
  return parts.join('\nCaused by: ');
}

function isOfUser(line) {
  return !/^\s+at /.test(line) || !(line.includes('node:') || SHIM.some((place) => line.includes(place)));
}

/** The text itself, or its beginning and end around a note of what is missing, `limit` characters in all. */
function clip(text, limit) {
  const whole = wellFormed(text);
  if (whole.length <= limit) {
    return whole;
  }
  const note = `\n… (${whole.length - limit} characters left out) …\n`;
  const room = limit - note.length;
  return wellFormed(whole.slice(0, room >> 1) + note + whole.slice(whole.length - (room - (room >> 1))));
}

/** Lone surrogates, which no decoder has to accept, spelled out. */
function wellFormed(text) {
  if (text.isWellFormed()) {
    return text;
  }
  const lone = /[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g;
  return text.replace(lone, (unit) => `\\u${unit.charCodeAt(0).toString(16)}`);
}

module.exports = { describe };
