//! Names, room patterns and origins. The input has a line with a room, a line with a
//! user, and then lines with patterns, such as `team-*=rw`.

use super::world;
use roomcast_auth::origin::Origins;
use roomcast_auth::{Signer, ticket};
use roomcast_gateway::handshake;
use roomcast_proto::access::{Rights, RoomPatterns, user_rights};
use roomcast_proto::name;

/// Runs the target on an input. Panics if a promise is broken.
pub fn run(input: &[u8]) {
    world::begin();
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (room, user) = (next(), next());
    let given: Vec<(String, Rights)> = lines.take(32).map(pattern).collect();
    names(room);
    names(user);
    rights(&given, room, user);
    lists(text, room, user);
    ids(room);
}

/// Parses `name=rwpa`.
fn pattern(line: &str) -> (String, Rights) {
    let (pattern, letters) = line.rsplit_once('=').unwrap_or((line, "rwp"));
    let rights = letters.chars().filter_map(|letter| match letter {
        'r' => Rights::parse("read"),
        'w' => Rights::parse("write"),
        'p' => Rights::parse("presence"),
        'a' => Rights::parse("admin"),
        _ => None,
    });
    (pattern.to_owned(), rights.fold(Rights::NONE, Rights::with))
}

fn names(text: &str) {
    let of_alphabet = |more: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c) || more.contains(c);
        !text.is_empty() && text.chars().all(known)
    };
    let length = text.chars().count();
    // Names of the old alphabet are user ids. Other ids are covered by tests of properties.
    if of_alphabet("@") {
        assert_eq!(name::is_user(text), length <= 255);
    }
    if name::is_user(text) {
        assert!(text.len() <= 255 && text.trim() == text);
        assert!(!text.chars().any(char::is_control));
    }
    assert_eq!(name::is_event(text), of_alphabet("") && length <= 64);
    let own = text.strip_prefix('@').is_some_and(name::is_user);
    assert_eq!(
        name::is_room(text),
        own || of_alphabet("@") && length <= 128
    );
    let own = name::personal_room(text);
    assert_eq!(name::personal_room_owner(&own), Some(text));
    if name::is_user(text) {
        assert!(name::is_room(&own));
    }
}

/// Reference implementation: a pattern with the full name wins, then the longest
/// prefix. The last one of equal patterns wins.
fn model(patterns: &[(String, Rights)], room: &str) -> Rights {
    let last = |wanted: &str| patterns.iter().rfind(|(pattern, _)| pattern == wanted);
    let exact = last(room).filter(|_| !room.ends_with('*'));
    let prefix = || {
        let mut prefixes = (0..=room.len()).rev().filter_map(|end| room.get(..end));
        prefixes.find_map(|prefix| last(&format!("{prefix}*")))
    };
    exact
        .or_else(prefix)
        .map_or(Rights::NONE, |(_, rights)| *rights)
}

fn rights(given: &[(String, Rights)], room: &str, user: &str) {
    let patterns = RoomPatterns::new(given.to_vec());
    let rights = patterns.rights(room);
    assert_eq!(rights, model(given, room));
    if patterns.grant_all() {
        assert_eq!(rights, Rights::ADMIN);
    }
    let own = user_rights(&patterns, user, room);
    match room.strip_prefix('@') {
        Some(owner) => {
            assert!(!own.has(Rights::WRITE));
            assert_eq!(own.has(Rights::READ), owner == user);
        }
        None => assert_eq!(own, rights),
    }
    let json = serde_json::to_string(&patterns).expect("JSON");
    let read: RoomPatterns = serde_json::from_str(&json).expect("valid JSON");
    assert_eq!(read, patterns);
}

/// Lists in settings, and an origin of a request to a host.
fn lists(text: &str, origin: &str, host: &str) {
    let patterns = RoomPatterns::from_list(text);
    for pattern in text.split([',', ' ']).filter(|one| !one.is_empty()) {
        if !pattern.ends_with('*') {
            assert_eq!(patterns.rights(pattern), Rights::MEMBER);
        }
    }
    let bare = origin.split_once("://").map(|(_, authority)| authority);
    // An origin without a host is never that of the server.
    let is_own = bare.is_some_and(|it| !it.is_empty() && it.eq_ignore_ascii_case(host));
    if bare.is_some() {
        let same = Origins::default();
        assert_eq!(same.allows(Some(origin), host), is_own);
    }
    let list = text.splitn(3, '\n').nth(2).unwrap_or_default();
    let origins = Origins::parse(list);
    assert!(origins.allows(None, host));
    let entries = list.split([',', ' ']).map(|one| one.trim_end_matches('/'));
    let entries: Vec<&str> = entries.filter(|one| !one.is_empty()).collect();
    assert!(!is_own || origins.allows(Some(origin), host));
    // Wildcards are covered by unit tests.
    if !list.contains('*') && !is_own && origins.allows(Some(origin), host) {
        let is_listed = entries.iter().any(|entry| {
            let equals = |origin: &str| entry.eq_ignore_ascii_case(origin);
            equals(origin) || bare.is_some_and(equals)
        });
        assert!(is_listed, "{origin} is not in {list}");
    }
}

/// Ids with the number of an object.
fn ids(text: &str) {
    if let Some(shard) = handshake::shard_of(text) {
        assert!(shard < roomcast_gateway::config::MAX_SHARDS);
    }
    let signer = Signer::new([]);
    if let Some(shard) = ticket::shard_of(&signer, text) {
        assert!(shard < ticket::SHARDS);
        assert_eq!(ticket::compose(&signer, shard, &text[2..]), text);
    }
    assert!(ticket::shard_of_user(text) < ticket::SHARDS);
}
