//! Where flow logs are that customers manage: the table `[rules]`, checked.

use flowlog_control::etcd::{EtcdOptions, PREFIX_DEFAULT};
use flowlog_model::rule::InvalidField;

use super::raw::RawRules;

/// Who listens on this machine only, as a URL has it.
const LOOPBACK: [&str; 3] = ["127.", "localhost", "[::1]"];

impl RawRules {
    /// How etcd is reached; `None`: the flow logs are the node's own.
    ///
    /// # Errors
    /// Which key is wrong.
    pub(super) fn check(&self) -> Result<Option<EtcdOptions>, InvalidField> {
        let Self { etcd, etcd_ca, etcd_certificate, etcd_key, etcd_credentials, etcd_prefix } = self.clone();
        if etcd.is_empty() {
            let others = [&etcd_ca, &etcd_certificate, &etcd_key, &etcd_credentials];
            let is_alone = others.iter().all(|path| path.is_none()) && etcd_prefix.is_none();
            let rule = "name the members of etcd as well, as `https://host:2379`";
            return if is_alone { Ok(None) } else { Err(InvalidField::new("rules.etcd", "", rule)) };
        }
        for url in &etcd {
            let is_here = |rest: &str| LOOPBACK.iter().any(|host| rest.starts_with(host));
            let good = url.starts_with("https://") || url.strip_prefix("http://").is_some_and(is_here);
            if !good {
                let rule = "write `https://host:2379`; http:// is for a loopback address: who may change flow logs would be anybody";
                return Err(InvalidField::new("rules.etcd", url, rule));
            }
        }
        let identity = match (etcd_certificate, etcd_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let rule = "give `etcd_certificate` and `etcd_key`, or neither";
                return Err(InvalidField::new("rules.etcd_certificate", "", rule));
            }
        };
        let prefix = etcd_prefix.unwrap_or_else(|| PREFIX_DEFAULT.to_owned());
        if !prefix.starts_with('/') || prefix.ends_with('/') {
            let rule = "must begin with a `/`, and end with none";
            return Err(InvalidField::new("rules.etcd_prefix", prefix, rule));
        }
        Ok(Some(EtcdOptions { endpoints: etcd, ca: etcd_ca, identity, credentials: etcd_credentials, prefix }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_is_reached_over_tls_or_on_this_machine() {
        let with = |url: &str| RawRules { etcd: vec![url.to_owned()], ..RawRules::default() };
        for good in ["https://etcd-1:2379", "http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:2379"] {
            assert!(with(good).check().is_ok_and(|options| options.is_some()), "{good}");
        }
        for bad in ["http://etcd-1:2379", "etcd-1:2379", "", "ftp://x"] {
            assert!(with(bad).check().is_err(), "{bad}");
        }
        assert_eq!(RawRules::default().check(), Ok(None));
        let alone = RawRules { etcd_ca: Some("/ca".into()), ..RawRules::default() };
        assert!(alone.check().is_err());
        let half = RawRules { etcd_key: Some("/key".into()), ..with("https://etcd-1:2379") };
        assert!(half.check().is_err());
        let prefix = RawRules { etcd_prefix: Some("flowlog/".to_owned()), ..with("https://etcd-1:2379") };
        assert!(prefix.check().is_err());
    }
}
