//! The profiles of users.
//!
//! The profile of a member is stored with the member. The room keeps the profiles of the users who
//! are present in memory, in the roster, because presence updates, typing indicators and messages
//! have them. So they take at most 1 KiB for each connected user. The profiles of other members are
//! read from storage for the pages of a list.

use super::Room;
use crate::output::Change;
use roomcast_proto::id::UserId;
use roomcast_proto::time::{Millis, SECOND};
use roomcast_proto::user_info::{Profile, UserInfo};
use std::collections::HashMap;

impl Room {
    /// Takes the profile in a token that a present user has shown. The profile of an older token
    /// than the last one is ignored.
    pub(super) fn set_profile(&mut self, user: &UserId, profile: Profile, now: Millis) {
        let Profile { issued, info } = profile;
        let Some(member) = self.members.get(user) else {
            return;
        };
        if !self.presence.roster.is_present(user) {
            return;
        }
        let (has_info, informed) = (member.has_info, member.informed);
        if info.is_none() && !has_info {
            return self.presence.roster.set_info(user, None);
        }
        let issued = issued.unwrap_or(now / SECOND);
        let is_older = issued < informed;
        // After hibernation, and after the user was away.
        self.load_profiles();
        let known = match self.presence.roster.info(user) {
            None if has_info => self.stored_profile(user),
            known => known.cloned(),
        };
        if is_older || known == info {
            return self.presence.roster.set_info(user, known);
        }
        self.presence.roster.set_info(user, info.clone());
        self.presence.roster.announce_again(user);
        self.members.set_informed(user, info.is_some(), issued);
        self.batch.store(Change::PutProfile {
            user: user.clone(),
            info,
            informed: issued,
        });
        self.schedule_presence(now);
    }

    /// Reads the profiles of the present users that are not known since a restart.
    pub(super) fn load_profiles(&mut self) {
        let unknown = self.presence.roster.take_unknown();
        if unknown.is_empty() {
            return;
        }
        let mut infos = self.read_profiles(&unknown);
        for user in unknown {
            let info = infos.remove(&user);
            self.presence.roster.set_info(&user, info);
        }
    }

    fn stored_profile(&self, user: &UserId) -> Option<UserInfo> {
        self.read_profiles(std::slice::from_ref(user)).remove(user)
    }

    /// Returns the profiles of those of these members who are not present, from storage, and of
    /// those who are present.
    pub(super) fn profiles_of(&self, users: &[UserId]) -> HashMap<UserId, UserInfo> {
        let roster = &self.presence.roster;
        let (present, away): (Vec<UserId>, Vec<UserId>) = users
            .iter()
            .cloned()
            .partition(|user| roster.is_present(user));
        let mut infos = self.read_profiles(&away);
        for user in present {
            if let Some(info) = roster.info(&user) {
                infos.insert(user, info.clone());
            }
        }
        infos
    }

    fn read_profiles(&self, users: &[UserId]) -> HashMap<UserId, UserInfo> {
        let mut infos = HashMap::new();
        let has_info = |user: &&UserId| {
            let member = self.members.get(user);
            member.is_some_and(|member| member.has_info)
        };
        let users: Vec<UserId> = users.iter().filter(has_info).cloned().collect();
        if let Some(read) = &self.read_profiles
            && !users.is_empty()
        {
            // The host has logged a failure. The profiles are then missing in this answer.
            let _ = read(&users, &mut |user, info| {
                infos.insert(user, info);
            });
        }
        infos
    }
}
