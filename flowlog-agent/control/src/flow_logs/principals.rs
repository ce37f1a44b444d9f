//! The principals of this node and their credentials, from a file that is read again when it changes. Secrets are in it
//! as hashes only.
//!
//! ```toml
//! [[principal]]
//! id = "…"
//! name = "ann@example.com"
//! contract = "31960002"
//! role = "user"                                  # owner, administrator
//! privileges = ["create_flow_logs", "use_object_storage"]
//! password_hash = "$argon2id$…"                  # for Basic; `flowlog credential password`
//! token_hashes = ["9f86d0…"]                     # for Bearer; `flowlog credential token`
//! uids = [1000]                                  # users of this node, on its socket
//! ```

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _, password_hash::phc::PasswordHash};
use flowlog_host::clock;
use flowlog_model::ids::hex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::access::{Caller, Principal, Privilege, Role};
use crate::{
    inventory::{Contract, file::read_text},
    toml_error,
};

/// For how long a password that was right is accepted without being hashed again: hashing is slow on purpose, and clients poll.
const REMEMBER_NS: u64 = 60_000_000_000;
/// Most passwords that are remembered.
const REMEMBERED_MAX: usize = 1_024;
/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    principal: Vec<Raw>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: Uuid,
    name: String,
    contract: Contract,
    role: Role,
    #[serde(default)]
    privileges: Vec<Privilege>,
    password_hash: Option<String>,
    #[serde(default)]
    token_hashes: Vec<String>,
    #[serde(default)]
    uids: Vec<u32>,
}

/// Whether a user of this node is its operator.
#[must_use]
pub(crate) fn is_operator(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Everybody who is known, and how they prove it.
#[derive(Debug, Default)]
pub struct Principals {
    by_id: BTreeMap<Uuid, Arc<Principal>>,
    passwords: BTreeMap<String, (String, Arc<Principal>)>,
    tokens: BTreeMap<[u8; 32], Arc<Principal>>,
    uids: BTreeMap<u32, Arc<Principal>>,
    /// Digests of passwords that were right, and until when.
    right: Mutex<BTreeMap<[u8; 32], u64>>,
}

impl Principals {
    /// Reads the file.
    ///
    /// # Errors
    /// In words, on one line; never with a secret in them.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = read_text(path)?;
        let file: File = toml::from_str(&text).map_err(|e| toml_error(&text, &e))?;
        let mut all = Self::default();
        for raw in file.principal {
            let who = raw.name.clone();
            all.add(raw).map_err(|words| format!("principal `{who}`: {words}"))?;
        }
        Ok(all)
    }

    fn add(&mut self, raw: Raw) -> Result<(), String> {
        let Raw { id, name, contract, role, privileges, password_hash, token_hashes, uids } = raw;
        if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
            return Err("name: must not be empty or hold `:` or control characters".to_owned());
        }
        let principal = Arc::new(Principal { id, name: name.clone(), contract, role, privileges });
        if id.is_nil() || self.by_id.insert(id, principal.clone()).is_some() {
            return Err(format!("id {id} is nil, or another principal's"));
        }
        if let Some(hash) = password_hash {
            if PasswordHash::new(&hash).is_err() {
                return Err("password_hash: make it with `flowlog credential password`".to_owned());
            }
            if self.passwords.insert(name, (hash, principal.clone())).is_some() {
                return Err("name: another principal with a password has it".to_owned());
            }
        }
        for hash in token_hashes {
            let digest = unhex(&hash).ok_or("token_hashes: make one with `flowlog credential token`")?;
            if self.tokens.insert(digest, principal.clone()).is_some() {
                return Err("token_hashes: another principal has the same token".to_owned());
            }
        }
        for uid in uids {
            if uid == 0 {
                return Err("uids: 0 is the node's operator".to_owned());
            }
            if self.uids.insert(uid, principal.clone()).is_some() {
                return Err(format!("uids: {uid} is another principal's"));
            }
        }
        Ok(())
    }

    /// The principal with this id.
    #[must_use]
    pub(crate) fn get(&self, id: Uuid) -> Option<Arc<Principal>> {
        self.by_id.get(&id).cloned()
    }

    /// The caller behind a process on the node's own socket, by its user (peer credentials: `SO_PEERCRED`, unix(7)).
    #[must_use]
    pub(crate) fn by_uid(&self, uid: u32) -> Option<Caller> {
        if is_operator(uid) {
            return Some(Caller::Operator);
        }
        self.uids.get(&uid).cloned().map(Caller::Principal)
    }

    /// The caller with this Bearer token. A token is random, so a plain digest of it cannot be turned back.
    #[must_use]
    pub(crate) fn by_token(&self, token: &str) -> Option<Caller> {
        self.tokens.get(&digest(&[token])).cloned().map(Caller::Principal)
    }

    /// The caller with this name and password, if the two were found right a moment ago. Nothing is hashed slowly.
    #[must_use]
    pub(crate) fn remembered(&self, name: &str, password: &str) -> Option<Caller> {
        let (hash, principal) = self.passwords.get(name)?;
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        let until = right.get(&tried(name, hash, password))?;
        (*until > clock::now().mono.0).then(|| Caller::Principal(principal.clone()))
    }

    /// The caller with this name and password. Slow on purpose (Argon2id): call it where that blocks nobody.
    #[must_use]
    pub(crate) fn by_password(&self, name: &str, password: &str) -> Option<Caller> {
        let Some((hash, principal)) = self.passwords.get(name) else {
            // An unknown name must take as long as a known one: else the time would tell which names exist.
            let _ = Argon2::default().hash_password(password.as_bytes());
            return None;
        };
        let parsed = PasswordHash::new(hash).ok()?;
        Argon2::default().verify_password(password.as_bytes(), &parsed).ok()?;
        let now = clock::now().mono.0;
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.retain(|_, until| *until > now);
        if right.len() < REMEMBERED_MAX {
            right.insert(tried(name, hash, password), now + REMEMBER_NS);
        }
        Some(Caller::Principal(principal.clone()))
    }
}

/// What is remembered of a password that was right. The hash in the file is part of it, so changing the password forgets it.
fn tried(name: &str, hash: &str, password: &str) -> [u8; 32] {
    digest(&[name, "\n", hash, "\n", password])
}

/// A password's hash, for the file.
///
/// # Errors
/// If there is no randomness.
pub fn hash_password(password: &str) -> Result<String, String> {
    Argon2::default().hash_password(password.as_bytes()).map(|h| h.to_string()).map_err(|e| e.to_string())
}

/// A new token and its hash, for the file.
#[must_use]
pub fn new_token() -> (String, String) {
    // Two random UUIDs are 244 bits.
    let bytes: Vec<u8> = (0..TOKEN_BYTES / 16).flat_map(|_| *Uuid::new_v4().as_bytes()).collect();
    let token = hex(&bytes);
    let hash = hex(&digest(&[&token]));
    (token, hash)
}

/// A digest of these, one behind the other.
pub(crate) fn digest(parts: &[&str]) -> [u8; 32] {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update(part.as_bytes());
    }
    sha.finalize().into()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Principals, String> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("write");
        Principals::read(file.path())
    }

    fn ann(more: &str) -> String {
        format!("[[principal]]\nid = '{}'\nname = 'ann'\ncontract = '1'\nrole = 'user'\n{more}\n", Uuid::from_u128(7))
    }

    #[test]
    fn somebody_is_known_by_password_token_or_uid_and_by_nothing_else() {
        let (token, hash) = new_token();
        let password = hash_password("correct horse").expect("hash");
        assert!(!password.contains("horse") && token != hash);
        let all = read(&ann(&format!("password_hash = '{password}'\ntoken_hashes = ['{hash}']\nuids = [1000]")))
            .expect("good");
        let is_ann = |caller: Option<Caller>| caller.is_some_and(|c| c.name() == "ann");
        assert!(all.remembered("ann", "correct horse").is_none());
        assert!(is_ann(all.by_password("ann", "correct horse")) && is_ann(all.remembered("ann", "correct horse")));
        assert!(all.by_password("ann", "correct hors").is_none() && all.by_password("bob", "correct horse").is_none());
        assert!(all.remembered("ann", "correct hors").is_none());
        assert!(is_ann(all.by_token(&token)) && all.by_token(&hash).is_none() && all.by_token("").is_none());
        assert!(is_ann(all.by_uid(1_000)) && all.by_uid(1_001).is_none() && all.by_uid(0) == Some(Caller::Operator));
    }

    #[test]
    fn a_file_with_a_mistake_says_whose_and_which_without_secrets() {
        let twice = format!("{}{}", ann("uids = [5]"), ann("uids = [5]").replace("0007", "0008"));
        for (text, words) in [
            (ann("password_hash = 'secret'"), "principal `ann`: password_hash: make it with"),
            (ann("token_hashes = ['secret']"), "principal `ann`: token_hashes: make one with"),
            (ann("uids = [0]"), "0 is the node's operator"),
            (ann("role = 'king'"), "duplicate key"),
            (ann("").replace("user", "king"), "unknown variant `king`"),
            (twice, "uids: 5 is another principal's"),
            (format!("{}{}", ann(""), ann("")), "another principal's"),
        ] {
            let error = read(&text).expect_err(words);
            assert!(error.contains(words) && !error.contains("secret") && !error.contains('\n'), "{error}");
        }
    }
}
