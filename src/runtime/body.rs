//! Bodies of requests and responses.

use js_sys::Reflect;
use wasm_bindgen::{JsCast, JsValue};
use worker::wasm_bindgen_futures::JsFuture;

/// Maximum number of bytes beyond the limit of a body that are read and dropped. They are read
/// because a client that is still sending when it is answered gets a broken pipe instead of the
/// answer.
pub(crate) const MAX_DRAIN: usize = 32 << 20;

/// Maximum number of bytes of a body that are read at a time.
const BODY_CHUNK: usize = 64 * 1024;

/// Reads a body; `None` is an empty body. If the body is larger than `limit` bytes, reads and
/// drops up to `drain` more bytes and returns `None`. All chunks are read into one buffer,
/// because JavaScript frees a buffer only some time after its last use.
pub(crate) async fn read_body(
    body: Option<web_sys::ReadableStream>,
    limit: usize,
    drain: usize,
) -> Result<Option<Vec<u8>>, JsValue> {
    let Some(stream) = body else {
        return Ok(Some(Vec::new()));
    };
    let options = web_sys::ReadableStreamGetReaderOptions::new();
    options.set_mode(web_sys::ReadableStreamReaderMode::Byob);
    let reader: web_sys::ReadableStreamByobReader =
        stream.get_reader_with_options(&options).unchecked_into();
    let mut body = Vec::new();
    let mut length = 0;
    let mut buffer = js_sys::ArrayBuffer::new(BODY_CHUNK.min(limit + 1) as u32);
    while length <= limit + drain {
        let view = js_sys::Uint8Array::new(&buffer);
        let read = JsFuture::from(reader.read_with_array_buffer_view(&view)).await?;
        if Reflect::get(&read, &"done".into())?.is_truthy() {
            break;
        }
        let chunk: js_sys::Uint8Array = Reflect::get(&read, &"value".into())?.unchecked_into();
        length += chunk.length() as usize;
        if length <= limit {
            body.extend_from_slice(&chunk.to_vec());
        } else {
            body = Vec::new();
        }
        buffer = chunk.buffer();
    }
    Ok((length <= limit).then_some(body))
}
