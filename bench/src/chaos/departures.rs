//! Users that join a room during the faults, and leave it, disconnect, or receive a token
//! that does not open it. After that, no client may show them as online.

use super::participant::TIMEOUT;
use crate::client::{Client, Failure, User};
use crate::dialect::Dialect;
use crate::target::Endpoint;
use roomcast_harness::Token;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// How a user goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It leaves the room.
    Leaves,
    /// Its connection ends.
    Disconnects,
    /// Its new token does not open the room. Its connection stays.
    LosesRoom,
}

/// The users that join and go in each room and each round.
pub(super) const DEPARTURES: [(&str, Departure); 3] = [
    ("gus", Departure::Leaves),
    ("hal", Departure::Disconnects),
    ("ida", Departure::LosesRoom),
];

/// Ranges of the time before a user joins, and of its time in the room, in milliseconds.
const BEFORE: (u64, u64) = (0, 3_000);
const STAY: (u64, u64) = (0, 1_500);

/// Pause before a user tries again.
const PAUSE: Duration = Duration::from_millis(100);

/// A user that joins a room and goes.
pub(super) struct Departing {
    pub endpoint: Arc<Endpoint>,
    pub room: &'static str,
    pub user: &'static str,
    pub departure: Departure,
    pub dialect: Dialect,
    pub seed: u64,
}

impl Departing {
    /// Joins and goes. Tries again until the user has gone, because the server may fail at any
    /// time. Returns the connection if it stays open.
    pub(super) async fn run(self) -> Option<Client> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        sleep(Duration::from_millis(random.u64(BEFORE.0..BEFORE.1))).await;
        let user = User {
            name: self.user.to_owned(),
            token: self.token("*"),
        };
        loop {
            // Without a position, a member receives everything after its cursor.
            let Some(head) = self.head().await else {
                sleep(PAUSE).await;
                continue;
            };
            let opening = Client::open(
                &self.endpoint,
                self.dialect,
                self.room,
                &user,
                Some(head),
                |_, _| {},
            );
            if let Ok(Ok(mut client)) = timeout(TIMEOUT, opening).await {
                let stay = Duration::from_millis(random.u64(STAY.0..STAY.1));
                let _ = timeout(stay, read_until(&mut client, b"\0")).await;
                match self.departure {
                    Departure::Disconnects => {
                        client.cut();
                        return None;
                    }
                    Departure::Leaves if self.leave(&mut client).await => return None,
                    Departure::LosesRoom if self.lose_room(&mut client).await => {
                        return Some(client);
                    }
                    Departure::Leaves | Departure::LosesRoom => {}
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn token(&self, rooms: &str) -> String {
        let token = Token::user(self.user).claim("rooms", vec![rooms]);
        token.ttl(86_400).sign(roomcast_harness::SECRET)
    }

    /// Returns the last event of the room. Returns `None` if the server does not answer.
    async fn head(&self) -> Option<u64> {
        let head = timeout(TIMEOUT, self.endpoint.head(self.room)).await;
        head.ok()?.ok()
    }

    /// Leaves the room. Returns `true` if the user is no member afterwards.
    async fn leave(&self, client: &mut Client) -> bool {
        let room = format!(r#"{{"roomId":"{}"}}"#, self.room);
        let command = self.dialect.command("leaveRoom", &room, None);
        if client.send(&command).await.is_err() {
            return false;
        }
        let path = format!("/rooms/{}/members?limit=1000", self.room);
        let member = format!(r#""userId":"{}""#, self.user);
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            sleep(PAUSE).await;
            let members = timeout(TIMEOUT, self.endpoint.get_text(&path)).await;
            if matches!(members, Ok(Ok(members)) if !members.contains(&member)) {
                return true;
            }
        }
        false
    }

    /// Replaces the token by one that does not open the room. Returns `true` if the client has
    /// received `roomClosed`.
    async fn lose_room(&self, client: &mut Client) -> bool {
        let refresh = format!(r#"{{"token":"{}"}}"#, self.token("other"));
        let command = self.dialect.command("refreshToken", &refresh, None);
        if client.send(&command).await.is_err() {
            return false;
        }
        let closed = read_until(client, br#""event":"roomClosed""#);
        matches!(timeout(TIMEOUT, closed).await, Ok(Ok(())))
    }
}

/// Reads until a line contains `text`.
async fn read_until(client: &mut Client, text: &[u8]) -> Result<(), Failure> {
    let mut found = false;
    while !found {
        client
            .read_raw(|_, raw| found |= memchr::memmem::find(raw, text).is_some())
            .await?;
    }
    Ok(())
}
