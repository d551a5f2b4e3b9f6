// Tests the configuration of the deployed Worker (wrangler.toml) as wrangler reads it.
import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { unstable_readConfig as readConfig } from 'wrangler';

const config = fileURLToPath(new URL('../wrangler.toml', import.meta.url));
const production = readConfig({ config });
const staging = readConfig({ config, env: 'staging' });

test('the deployed Worker logs no queries, which may contain tokens', () => {
  for (const { observability } of [production, staging]) {
    assert.equal(observability.redact_query_string, true);
    assert.equal(observability.logs.invocation_logs, false);
    assert.equal(observability.traces.enabled, false);
  }
});

test('the deployed Worker writes only warnings and errors', () => {
  assert.equal(production.vars.LOG_LEVEL, 'warn');
  assert.equal(staging.vars.LOG_LEVEL, 'info');
});

test('the runtime reports aborted requests to the deployed Worker', () => {
  for (const { compatibility_flags: flags } of [production, staging]) {
    assert.ok(flags.includes('enable_request_signal'));
  }
});

test('the staging Worker has all bindings of the production Worker', () => {
  const bindings = ({ durable_objects: { bindings } }) => bindings.map((one) => [one.name, one.class_name]);
  assert.deepEqual(bindings(staging), bindings(production));
  assert.deepEqual(Object.keys(staging.vars), Object.keys(production.vars));
});
