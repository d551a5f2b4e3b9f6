//! Random ids.

/// Returns a new id: 64 random bits in hexadecimal.
pub(crate) fn fresh_id() -> String {
    let bits = getrandom::u64().expect("the runtime has a random generator");
    format!("{bits:016x}")
}
