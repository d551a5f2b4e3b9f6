// The main module of the Worker. It exports the Durable Object classes and the
// `fetch` handler of the Rust code, and moves them to a new WebAssembly instance
// after a panic.
//
// Rust is compiled with `panic = "abort"`: a panic traps, and leaves the memory of
// the instance, which all objects of the isolate share, in an undefined state. The
// glue code then replaces the instance immediately and rejects every use of an object
// or a closure of the old one (see `replace_at_once` in build.rs). This module does
// the rest:
// - It rejects the calls in progress, which would never settle, so that the caller
//   can repeat them.
// - It constructs the Rust object of a Durable Object again, from the same
//   arguments, when the next event of the object arrives. Its storage and its sockets belong to
//   the runtime and are not affected.
import * as glue from "./index.js";

// With the default of 10 frames, most traces of panics do not include the cause.
Error.stackTraceLimit = 100;

const EVENTS = ["fetch", "alarm", "webSocketMessage", "webSocketClose", "webSocketError"];

/** Number of replaced instances. */
let instance = 0;

/** Functions that reject the promises of the calls in progress. */
const pending = new Set();

glue.onReplace(() => {
  instance += 1;
  const calls = [...pending];
  pending.clear();
  for (const fail of calls) fail(new Error("interrupted by a panic in the same isolate"));
});

/** Returns `result`. If it is a promise, returns a promise that is also rejected
 * when the instance is replaced. */
function settled(result) {
  if (!(result instanceof Promise)) return result;
  return new Promise((resolve, reject) => {
    pending.add(reject);
    result.then(
      (value) => {
        pending.delete(reject);
        resolve(value);
      },
      (error) => {
        pending.delete(reject);
        reject(error);
      },
    );
  });
}

/** Returns the class that the runtime constructs in place of `RustClass`. */
function durableObject(RustClass) {
  class Wrapper {
    #ctx;
    #env;
    #object;
    #instance;

    constructor(ctx, env) {
      this.#ctx = ctx;
      this.#env = env;
      this.current();
    }

    /** Returns the Rust object, constructed again if its instance was replaced. */
    current() {
      if (this.#instance !== instance) {
        this.#object = new RustClass(this.#ctx, this.#env);
        this.#instance = instance;
      }
      return this.#object;
    }
  }
  // The runtime treats a class that lacks a handler differently.
  for (const event of EVENTS) {
    if (event in RustClass.prototype) {
      Wrapper.prototype[event] = function (a, b, c, d) {
        return settled(this.current()[event](a, b, c, d));
      };
    }
  }
  return Wrapper;
}

export const Room = durableObject(glue.Room);
export const Gateway = durableObject(glue.Gateway);
export const Revocations = durableObject(glue.Revocations);
export const Tickets = durableObject(glue.Tickets);

/** Returns the response of the Rust code to a failure. */
function problem() {
  const body = {
    type: "about:blank",
    title: "Internal Server Error",
    status: 500,
    code: "internal",
    detail: "internal error, try again",
  };
  return Response.json(body, {
    status: 500,
    headers: { "content-type": "application/problem+json" },
  });
}

export default {
  async fetch(request, env, ctx) {
    try {
      return await settled(glue.fetch(request, env, ctx));
    } catch (error) {
      console.error(error);
      return problem();
    }
  },
};
