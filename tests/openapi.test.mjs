// What /openapi.json answers is OpenAPI, by the specification's own JSON Schema.
// That it has every route is a test of src/http/route.rs.
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

test('all that it refers to is there, and all that is there is referred to', () => {
  const text = JSON.stringify(api);
  const referred = new Set([...text.matchAll(/"#\/components\/(\w+)\/(\w+)"/g)].map((m) => m.slice(1).join('/')));
  const there = new Set(
    ['schemas', 'responses', 'parameters'].flatMap((kind) =>
      Object.keys(api.components[kind]).map((name) => `${kind}/${name}`)),
  );
  assert.deepEqual([...referred].sort(), [...there].sort());
});

test('every refusal is a problem with a stable code', () => {
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
