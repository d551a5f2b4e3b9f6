// Validates /openapi.json against the JSON Schema of OpenAPI. A test in
// src/http/route.rs checks that it contains every route.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Validator } from '@seriousme/openapi-schema-validator';

const api = JSON.parse(readFileSync(new URL('../src/http/openapi.json', import.meta.url), 'utf8'));

test('the description of the HTTP API is valid OpenAPI 3.1', async () => {
  const validator = new Validator();
  const result = await validator.validate(api);
  assert.ok(result.valid, JSON.stringify(result.errors, null, 2));
  assert.equal(validator.version, '3.1');
});

test('every reference has a component and every component is referenced', () => {
  const text = JSON.stringify(api);
  const referenced = new Set([...text.matchAll(/"#\/components\/(\w+)\/(\w+)"/g)].map((m) => m.slice(1).join('/')));
  const defined = new Set(
    ['schemas', 'responses', 'parameters'].flatMap((kind) =>
      Object.keys(api.components[kind]).map((name) => `${kind}/${name}`)),
  );
  assert.deepEqual([...referenced].sort(), [...defined].sort());
});

test('every error response is a shared problem response', () => {
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, { responses }] of Object.entries(item)) {
      if (method === 'parameters') continue;
      for (const [status, response] of Object.entries(responses)) {
        if (status < '400' || path === '/socket.io/') continue;
        assert.match(response.$ref, /^#\/components\/responses\//, `${method} ${path} ${status}`);
      }
    }
  }
  for (const response of Object.values(api.components.responses)) {
    assert.ok(response.content['application/problem+json'], response.description);
  }
});
