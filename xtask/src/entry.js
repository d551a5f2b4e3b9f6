// The main module of the Worker. It exports the Durable Object classes and the
// `fetch` handler of the Rust code, and binds them to a new WebAssembly instance
// after a panic.
//
// Rust is compiled with `panic = "abort"`: a panic traps and leaves the memory of
// the instance, which all objects of the isolate share, in an undefined state. The
// glue code then replaces the instance at once (see `replace_at_once` in build.rs)
// and rejects every use of an object or closure of the old one. What remains to be
// done here is to construct the Rust object of a Durable Object again, from the
// same arguments, when its next event arrives. Its storage and its sockets belong
// to the runtime and are not affected.
import * as glue from "./index.js";

// The default of 10 cuts off the cause of most panics.
Error.stackTraceLimit = 100;

// `instanceId` changes when the instance is replaced.
const state = glue.__worker_init_state();

const EVENTS = ["fetch", "alarm", "webSocketMessage", "webSocketClose", "webSocketError"];

/** Returns the class that the runtime constructs in place of `RustClass`. */
function durableObject(RustClass) {
  class Wrapper {
    #ctx;
    #env;
    #object;
    #instanceId;

    constructor(ctx, env) {
      this.#ctx = ctx;
      this.#env = env;
      this.current();
    }

    /** Returns the Rust object, constructed again if its instance was replaced. */
    current() {
      if (this.#instanceId !== state.instanceId) {
        this.#object = new RustClass(this.#ctx, this.#env);
        this.#instanceId = state.instanceId;
      }
      return this.#object;
    }
  }
  // The runtime behaves differently for a class that lacks a handler.
  for (const event of EVENTS) {
    if (event in RustClass.prototype) {
      Wrapper.prototype[event] = function (a, b, c, d) {
        return this.current()[event](a, b, c, d);
      };
    }
  }
  return Wrapper;
}

export const Room = durableObject(glue.Room);
export const Gateway = durableObject(glue.Gateway);
export const Revocations = durableObject(glue.Revocations);
export const Tickets = durableObject(glue.Tickets);

export default {
  fetch(request, env, ctx) {
    return glue.fetch(request, env, ctx);
  },
};
