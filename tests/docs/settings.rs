//! `docs/settings.md`, from the tables of settings of all layers.

use roomcast::config::WorkerConfig;
use roomcast_auth::AuthConfig;
use roomcast_gateway::config::GatewayConfig;
use roomcast_proto::limits::ConnectionLimits;
use roomcast_proto::settings::Setting;
use roomcast_room::config::RoomConfig;

const INTRO: &str = "\
# Settings

All settings of a deployment, with defaults and bounds. For operators.
`cargo xtask docs` generates this page from the code.

Settings are environment variables of the Worker: `[vars]` in `wrangler.toml`, or `--var` of
wrangler. Secrets are set by `npx wrangler secret put NAME`. For local use, both are in
`.dev.vars`. An empty value counts as not set. If a value is not valid, all routes except
`/openapi.json` answer 500 with the code `misconfigured` and the name of the setting; `/healthz`
answers 503.

A duration is `500ms`, `90s`, `10m`, `2h` or `7d`, up to 100 years; a bare number is seconds.
Entries of a list are separated by commas or spaces.
";

/// The heading, the introduction and the settings of one section.
type Section = (&'static str, &'static str, fn() -> Vec<Setting>);

const SECTIONS: &[Section] = &[
    (
        "Tokens",
        "At least one of the first four is required. `JWT_SECRET`, `JWT_SECRET_PREVIOUS` and \
         `SIGNING_KEY` are secrets.",
        AuthConfig::settings,
    ),
    ("Rooms", "", RoomConfig::settings),
    ("Gateways", "", GatewayConfig::settings),
    (
        "Limits",
        "A limit with two variables is a token bucket: `…_PER_SECOND` refills it, `…_BURST` is its \
         size. Over a\nlimit, the answer is `rateLimited` with `retryAfterMs`. A connection that \
         stays over a limit for 10 s is\nclosed with 4429.",
        ConnectionLimits::settings,
    ),
    ("Worker", "", WorkerConfig::settings),
];

/// Returns the page.
pub(crate) fn page() -> String {
    let mut page = INTRO.to_owned();
    for (title, intro, settings) in SECTIONS {
        page += &format!("\n## {title}\n\n");
        if !intro.is_empty() {
            page += &format!("{intro}\n\n");
        }
        page += "| setting | default | bounds | meaning |\n| --- | --- | --- | --- |\n";
        for setting in settings() {
            let names = setting.names.join("`, `");
            let Setting {
                default,
                bounds,
                meaning,
                ..
            } = &setting;
            page += &format!("| `{names}` | {default} | {bounds} | {meaning} |\n");
        }
    }
    page
}
