//! Settings as tables. Each layer declares its settings with [`settings!`](crate::settings!),
//! which generates the struct, its defaults, its reader and its part of `docs/settings.md`.
//!
//! A [`Kind`] defines how a setting is read: its type, its bounds and the text of its error.
//! Kinds that only one layer needs are defined there.

use crate::answer::to_json;
use crate::limits::Rate;
use crate::log_record::Level;
use crate::time::{DAY, HOUR, MINUTE, Millis, SECOND};
use std::fmt::Display;
use std::str::FromStr;

/// The error of a setting. It is shown to the operator, so it names the setting. It never
/// contains the value, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// A required setting is not set.
    #[error("{name} is not set: {hint}")]
    Missing {
        /// The environment variable.
        name: &'static str,
        /// How to set it.
        hint: &'static str,
    },
    /// The value of a setting is not valid.
    #[error("{name} must be {expected}")]
    Invalid {
        /// The environment variable.
        name: &'static str,
        /// A description of valid values.
        expected: String,
    },
}

/// The environment variables of a deployment.
pub struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl<'a> Variables<'a> {
    /// Creates the variables. `get` returns the value of a variable, or `None` if it is not
    /// set.
    pub fn new(get: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Variables(get)
    }

    /// Returns the value of a variable without white space around it. Returns `None` if
    /// the variable is not set or empty.
    pub fn get(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Returns the parsed value of a variable, or `default` if it is not set. If `parse`
    /// fails, it returns a description of valid values.
    ///
    /// # Errors
    ///
    /// Returns [`SettingError::Invalid`] if `parse` fails.
    pub fn parse<T>(
        &self,
        name: &'static str,
        default: T,
        parse: impl FnOnce(String) -> Result<T, String>,
    ) -> Result<T, SettingError> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => parse(text).map_err(|expected| SettingError::Invalid { name, expected }),
        }
    }

    /// Returns the number that a variable is set to, or `default` if it is not set.
    ///
    /// # Errors
    ///
    /// Returns [`SettingError::Invalid`] if the value is not a number within the bounds.
    pub fn number(
        &self,
        name: &'static str,
        default: f64,
        min: f64,
        max: f64,
    ) -> Result<f64, SettingError> {
        self.parse(name, default, |text| {
            parse_number(&text)
                .filter(|value| (min..=max).contains(value))
                .ok_or_else(|| format!("a number from {} to {}", shown(min), shown(max)))
        })
    }
}

/// Parses a number in the form of JSON. The Worker contains the parser of `serde_json`
/// anyway, and the parser of the standard library would add tables of 10 kB.
fn parse_number(text: &str) -> Option<f64> {
    serde_json::from_str(text).ok()
}

/// Returns a number as text. See [`parse_number`] for the reason.
fn shown(number: f64) -> String {
    if number.fract() == 0.0 {
        (number as u64).to_string()
    } else {
        to_json(&number)
    }
}

/// How a setting is read from its variables.
pub trait Kind {
    /// The type of the setting.
    type Value;

    /// Reads the setting from the variables `names`. Returns `default` if they are not set.
    ///
    /// # Errors
    ///
    /// Returns [`SettingError::Invalid`] if a value is not valid.
    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Self::Value,
    ) -> Result<Self::Value, SettingError>;

    /// Returns the valid values, for the reference.
    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String;

    /// Returns a value as it is written in the reference.
    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Self::Value) -> String;
}

/// A setting as the reference describes it.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Clone, Debug)]
pub struct Setting {
    /// The environment variables.
    pub names: &'static [&'static str],
    /// The default.
    pub default: String,
    /// The valid values.
    pub bounds: String,
    /// The meaning: the documentation of the field.
    pub meaning: String,
}

/// A whole number within bounds.
pub struct Whole<T> {
    /// The smallest valid value.
    pub min: T,
    /// The largest valid value.
    pub max: T,
}

/// Settings that end in `_MS`: a duration in whole milliseconds, up to a day.
pub const MILLISECONDS: Whole<Millis> = Whole { min: 0, max: DAY };

impl<T: FromStr + PartialOrd + Display> Kind for Whole<T> {
    type Value = T;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: T,
    ) -> Result<T, SettingError> {
        variables.parse(names[0], default, |text| {
            let number = text.parse().ok();
            number
                .filter(|value| (&self.min..=&self.max).contains(&value))
                .ok_or_else(|| format!("a whole number from {} to {}", self.min, self.max))
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        format!("{} to {}", grouped(&self.min), grouped(&self.max))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &T) -> String {
        grouped(value)
    }
}

/// A duration with a unit, up to [`MAX_DURATION`].
pub struct Duration {
    /// The smallest valid value.
    pub min: Millis,
}

/// Longest duration of a setting: one hundred years. Added to the current time, it does not
/// overflow and stays a valid date.
pub const MAX_DURATION: Millis = 36_500 * DAY;

impl Kind for Duration {
    type Value = Millis;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Millis,
    ) -> Result<Millis, SettingError> {
        variables.parse(names[0], default, |text| {
            let duration = parse_duration(&text);
            duration.filter(|value| *value >= self.min).ok_or_else(|| {
                let above = if self.min > 0 { " above 0" } else { "" };
                format!("a duration{above} such as 90s, 10m or 2h (a bare number is seconds)")
            })
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        match self.min {
            0 => "a duration".to_owned(),
            _ => "a duration above 0".to_owned(),
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Millis) -> String {
        let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s")];
        let unit = units
            .into_iter()
            .find(|(unit, _)| value.is_multiple_of(*unit));
        let (unit, name) = unit.unwrap_or((1, "ms"));
        format!("`{}{name}`", value / unit)
    }
}

/// Parses `500ms`, `90s`, `10m`, `2h`, `7d`, or seconds without a unit. Returns `None` if
/// the text is not a duration or longer than [`MAX_DURATION`].
pub fn parse_duration(text: &str) -> Option<Millis> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "ms" => 1,
        "" | "s" => SECOND,
        "m" | "min" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        _ => return None,
    };
    let millis = parse_number(number)? * unit as f64;
    (millis <= MAX_DURATION as f64).then_some(millis as Millis)
}

/// A number of days, which need not be whole.
pub struct Days {
    /// The largest valid number of days.
    pub max: f64,
}

impl Kind for Days {
    type Value = Millis;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Millis,
    ) -> Result<Millis, SettingError> {
        let default = default as f64 / DAY as f64;
        let days = variables.number(names[0], default, 0.0, self.max)?;
        Ok((days * DAY as f64) as Millis)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        format!("0 to {}, with fractions", grouped(&self.max))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Millis) -> String {
        grouped(&(*value as f64 / DAY as f64))
    }
}

/// Smallest rate of a limit per second: one request in 100 s. A rate of 0 would never allow
/// another request.
const MIN_RATE: f64 = 0.01;
/// Largest value of a limit. No client reaches it, so it turns a limit off.
const MAX_RATE: f64 = 1e9;

/// A rate limit with two variables: `…_PER_SECOND` and `…_BURST`.
pub struct PerSecond;

impl Kind for PerSecond {
    type Value = Rate;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Rate,
    ) -> Result<Rate, SettingError> {
        Ok(Rate {
            per_second: variables.number(names[0], default.per_second, MIN_RATE, MAX_RATE)?,
            burst: variables.number(names[1], default.burst, 1.0, MAX_RATE)?,
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        format!("{MIN_RATE} to 10⁹, 1 to 10⁹")
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Rate) -> String {
        format!("{}; {}", grouped(&value.per_second), grouped(&value.burst))
    }
}

/// A number of requests per minute, all of which can arrive at the same time.
pub struct PerMinute;

impl Kind for PerMinute {
    type Value = Rate;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Rate,
    ) -> Result<Rate, SettingError> {
        let count = variables.number(names[0], default.burst, 1.0, MAX_RATE)?;
        Ok(Rate::per_minute(count))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        "1 to 10⁹".to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Rate) -> String {
        grouped(&value.burst)
    }
}

/// `true` or `false`.
pub struct Flag;

impl Kind for Flag {
    type Value = bool;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: bool,
    ) -> Result<bool, SettingError> {
        variables.parse(names[0], default, |text| {
            text.parse().map_err(|_| "true or false".to_owned())
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        "`true`, `false`".to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &bool) -> String {
        format!("`{value}`")
    }
}

/// A text that need not be set.
pub struct Text;

impl Kind for Text {
    type Value = Option<String>;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Option<String>,
    ) -> Result<Option<String>, SettingError> {
        Ok(variables.get(names[0]).or(default))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        "a text".to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Option<String>) -> String {
        value
            .as_ref()
            .map_or("none".to_owned(), |text| format!("`{text}`"))
    }
}

/// A list separated by commas or spaces, which is parsed without errors.
pub struct List<T> {
    /// Parses the value of the variable.
    pub parse: fn(&str) -> T,
    /// The valid values, for the reference.
    #[cfg(not(target_arch = "wasm32"))]
    pub bounds: &'static str,
    /// Returns a value as it is written in the reference.
    #[cfg(not(target_arch = "wasm32"))]
    pub show: fn(&T) -> String,
}

impl<T> Kind for List<T> {
    type Value = T;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: T,
    ) -> Result<T, SettingError> {
        let list = variables.get(names[0]);
        Ok(list.map_or(default, |list| (self.parse)(&list)))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        self.bounds.to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &T) -> String {
        (self.show)(value)
    }
}

/// A level of the log.
pub struct LogLevel;

impl Kind for LogLevel {
    type Value = Level;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Level,
    ) -> Result<Level, SettingError> {
        variables.parse(names[0], default, |text| {
            let text = text.to_ascii_lowercase();
            let level = Level::ALL.into_iter().find(|level| level.as_str() == text);
            level.ok_or_else(|| "debug, info, warn, error or off".to_owned())
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        let levels = Level::ALL.map(|level| format!("`{}`", level.as_str()));
        levels.join(", ")
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Level) -> String {
        format!("`{}`", value.as_str())
    }
}

/// Returns a number with commas between groups of three digits.
#[cfg(not(target_arch = "wasm32"))]
fn grouped(number: &impl Display) -> String {
    let number = number.to_string();
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

/// Declares the settings of a layer: a struct, its function `read`, and the list
/// `settings()` for the reference, which is not compiled into the Worker.
///
/// Each row is a field with its documentation, type, default, variables and [`Kind`]. The
/// documentation is the text of the reference. Fields in `given` are not settings; `read`
/// takes them as arguments.
///
/// ```
/// use roomcast_proto::settings::{Variables, Whole};
///
/// roomcast_proto::settings! {
///     /// The settings of a library.
///     pub struct Library {
///         given {}
///         /// Maximum number of books.
///         pub max_books: usize = 10, ["MAX_BOOKS"], Whole { min: 1, max: 1_000 };
///     }
/// }
///
/// let variables = |name: &str| (name == "MAX_BOOKS").then(|| "20".to_owned());
/// let library = Library::read(&Variables::new(&variables)).expect("a valid setting");
/// assert_eq!(library.max_books, 20);
/// assert_eq!(Library::settings()[0].bounds, "1 to 1,000");
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            given {
                $( $(#[$given_meta:meta])* $given_vis:vis $given:ident: $given_type:ty, )*
            }
            $(
                $(#[doc = $doc:literal])*
                $field_vis:vis $field:ident: $type:ty = $default:expr,
                    [$($variable:literal),+], $kind:expr;
            )*
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $( $(#[$given_meta])* $given_vis $given: $given_type, )*
            $(
                $(#[doc = $doc])*
                #[doc = ""]
                #[doc = concat!("Set by", $(" `", $variable, "`",)+ ".")]
                $field_vis $field: $type,
            )*
        }

        impl $name {
            /// Reads the settings. A setting that is not set has its default.
            ///
            /// # Errors
            ///
            /// Fails if the value of a setting is not valid.
            $vis fn read(
                variables: &$crate::settings::Variables<'_>,
                $($given: $given_type,)*
            ) -> ::std::result::Result<Self, $crate::settings::SettingError> {
                Ok($name {
                    $($given,)*
                    $(
                        $field: $crate::settings::Kind::read(
                            &$kind,
                            variables,
                            &[$($variable),+],
                            $default,
                        )?,
                    )*
                })
            }

            /// Returns the settings for the reference.
            #[cfg(not(target_arch = "wasm32"))]
            $vis fn settings() -> ::std::vec::Vec<$crate::settings::Setting> {
                vec![$(
                    $crate::settings::Setting {
                        names: &[$($variable),+],
                        default: $crate::settings::Kind::show(&$kind, &$default),
                        bounds: $crate::settings::Kind::bounds(&$kind),
                        meaning: concat!($($doc),*).trim().to_owned(),
                    },
                )*]
            }
        }

        impl Default for $name
        where
            $($given_type: Default,)*
        {
            fn default() -> Self {
                $name {
                    $($given: Default::default(),)*
                    $($field: $default,)*
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<K: Kind>(kind: &K, value: &str, default: K::Value) -> Result<K::Value, SettingError> {
        let get = |_: &str| Some(value.to_owned());
        kind.read(&Variables::new(&get), &["A", "B"], default)
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms"), Some(500));
        assert_eq!(parse_duration("90"), Some(90 * SECOND));
        assert_eq!(parse_duration("10m"), Some(10 * MINUTE));
        assert_eq!(parse_duration("1.5h"), Some(90 * MINUTE));
        assert_eq!(parse_duration("7d"), Some(7 * DAY));
        assert_eq!(parse_duration("x"), None);
        assert_eq!(parse_duration("1y"), None);
        assert_eq!(parse_duration("-1"), None);
        assert_eq!(parse_duration("36501d"), None);
    }

    #[test]
    fn values_outside_the_bounds_are_rejected_with_the_bounds() {
        let whole = Whole { min: 1, max: 10 };
        assert_eq!(read(&whole, " 10 ", 5), Ok(10));
        let error = read(&whole, "11", 5).expect_err("too large").to_string();
        assert_eq!(error, "A must be a whole number from 1 to 10");
        assert!(read(&Duration { min: 0 }, "0", 5).is_ok());
        let error = read(&Duration { min: 1 }, "0", 5).expect_err("zero");
        assert!(
            error
                .to_string()
                .starts_with("A must be a duration above 0")
        );
        assert!(read(&Days { max: 7.0 }, "7.1", DAY).is_err());
        assert_eq!(read(&Days { max: 7.0 }, "0.5", DAY), Ok(DAY / 2));
        let rate = Rate::per_minute(1.0);
        for bad in ["0", "NaN", "2000000000", "x"] {
            assert!(read(&PerSecond, bad, rate).is_err(), "{bad}");
            assert!(read(&PerMinute, bad, rate).is_err(), "{bad}");
        }
    }

    #[test]
    fn empty_values_count_as_not_set() {
        assert_eq!(read(&Whole { min: 1, max: 10 }, " ", 5), Ok(5));
        assert_eq!(read(&Text, "", None), Ok(None));
        assert_eq!(read(&Flag, "", true), Ok(true));
    }

    #[test]
    fn the_reference_groups_digits_and_picks_the_largest_unit() {
        assert_eq!(grouped(&1_234_567), "1,234,567");
        assert_eq!(grouped(&100), "100");
        assert_eq!(grouped(&1234.5), "1,234.5");
        let duration = Duration { min: 0 };
        assert_eq!(duration.show(&(90 * SECOND)), "`90s`");
        assert_eq!(duration.show(&(10 * MINUTE)), "`10m`");
        assert_eq!(duration.show(&1), "`1ms`");
    }
}
