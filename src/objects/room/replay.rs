//! Replay: events that are read from the log for one connection.

use super::ActiveRoom;
use super::lines::append_lines;
use super::store::Store;
use crate::runtime::Result;
use js_sys::JsString;
use roomcast_proto::log_text::slice;
use roomcast_room::catch_up::PORTION_BYTES;
use roomcast_room::{ConnId, SeqRange};
use std::rc::Rc;
use worker::{Error, State};

/// Minimum length of a frame of a replay, in UTF-16 units. Long frames reduce the cost per
/// frame. The length is far below the frame limits of WebSocket libraries.
const REPLAY_FRAME: u32 = 256 * 1024;

/// The last replay. Kept because after an outage all connections request the same events.
#[derive(Default)]
pub(super) struct ReplayCache(Option<Replay>);

struct Replay {
    range: SeqRange,
    frames: Rc<Vec<JsString>>,
}

impl ReplayCache {
    /// Returns the frames of the events in `range`. Reads them from the log if the last
    /// replay had other events.
    fn frames(&mut self, store: &Store, range: SeqRange) -> Result<Rc<Vec<JsString>>> {
        if let Some(replay) = &self.0
            && replay.range == range
        {
            return Ok(replay.frames.clone());
        }
        let frames = Rc::new(store.replay_frames(range)?);
        self.0 = Some(Replay {
            range,
            frames: frames.clone(),
        });
        Ok(frames)
    }
}

impl ActiveRoom {
    /// Sends the events in `range`, as they are stored.
    pub(super) fn replay(&mut self, state: &State, conn: ConnId, range: SeqRange) -> Result<()> {
        let frames = self.replay.frames(&self.store, range)?;
        for frame in frames.iter() {
            self.send(state, conn, frame, frame.length() as usize);
        }
        Ok(())
    }
}

impl Store {
    /// Reads the next portion of the log at the start of `range`. Returns its last event and
    /// its text.
    pub(super) fn portion(&self, range: SeqRange) -> Result<(u64, JsString)> {
        let SeqRange { after, upto } = range;
        let (mut last, mut text) = (after, JsString::from(""));
        self.rows_while(after, upto, |first, last_of_row, body| {
            let body = cut(first, last_of_row, body, range);
            text = append_lines(&text, body);
            last = last_of_row.min(upto);
            (text.length() as usize) < PORTION_BYTES
        })?;
        if last == after {
            return Err(Error::RustError(format!(
                "the log lacks event {}",
                after + 1
            )));
        }
        Ok((last, text))
    }

    /// Reads the events in `range`, in frames of at least [`REPLAY_FRAME`] units.
    fn replay_frames(&self, range: SeqRange) -> Result<Vec<JsString>> {
        let mut frames = Vec::new();
        let mut frame = JsString::from("");
        self.rows_while(range.after, range.upto, |first, last, body| {
            frame = append_lines(&frame, cut(first, last, body, range));
            if frame.length() >= REPLAY_FRAME {
                frames.push(std::mem::replace(&mut frame, JsString::from("")));
            }
            true
        })?;
        if frame.length() > 0 {
            frames.push(frame);
        }
        Ok(frames)
    }
}

/// Returns the part of a log row that is in `range`. Only rows at the ends of the range are
/// copied out of JavaScript.
fn cut(first: u64, last: u64, body: JsString, range: SeqRange) -> JsString {
    let SeqRange { after, upto } = range;
    if first > after && last <= upto {
        body
    } else {
        JsString::from(slice(first, &String::from(&body), after, upto))
    }
}
