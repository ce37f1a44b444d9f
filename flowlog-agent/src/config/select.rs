//! Flow logs by selection: `select` instead of `interfaces`.

use flowlog_control::{
    flow_logs::templates::{Select, Template, Templates},
    inventory::Contract,
};
use flowlog_model::{interface::Selector, rule::InvalidField};

use super::{NAME_DEFAULT, RawFlowLog, raw::RawSelect};

/// Those of the configuration, in its order, and the interfaces that its other flow logs have.
pub(super) fn templates(logs: &[RawFlowLog]) -> Result<Templates, InvalidField> {
    let mut templates = Templates::default();
    for log in logs {
        match &log.select {
            Some(select) => {
                let new = template(log, select)?;
                // It is by its name that people are told which one covers a NIC.
                if templates.all.iter().any(|t| t.name() == new.name()) {
                    let rule = "two flow logs that select have this name; give one of them another `name`";
                    return Err(InvalidField::new("name", new.name(), rule));
                }
                templates.all.push(new);
            }
            None if log.netns.is_none() => templates.fixed.extend(log.interfaces.iter().map(Selector::name)),
            None => {}
        }
    }
    Ok(templates)
}

fn template(log: &RawFlowLog, select: &RawSelect) -> Result<Template, InvalidField> {
    let name = log.name.as_deref().unwrap_or(NAME_DEFAULT);
    let fields = [
        ("interfaces", !log.interfaces.is_empty()),
        ("netns", log.netns.is_some()),
        ("interface_id", log.interface_id.is_some()),
        ("account_id", log.account_id.is_some()),
        ("wait", log.wait == Some(false)),
    ];
    if let Some((field, _)) = fields.into_iter().find(|(_, is_said)| *is_said) {
        let rule = "is not for a flow log with `select`: what is selected says it, and is waited for";
        return Err(InvalidField::new(field, name, rule));
    }
    let contract = |text: &String| {
        text.parse::<Contract>().map_err(|words| InvalidField::new("select.contract", text.clone(), words))
    };
    Ok(Template {
        select: Select {
            contract: select.contract.as_ref().map(contract).transpose()?,
            kind: select.kind,
            labels: select.label.clone(),
        },
        rule: log.rule()?,
        hook: log.hook()?,
        translations: log.translations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    fn parse(text: &str) -> Result<Templates, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        let config = raw.check().map_err(|e| e.to_string())?;
        Ok(config.manage.expect("an inventory").templates)
    }

    const INVENTORY: &str = "[inventory]\nfile = '/i.toml'\n";

    #[test]
    fn a_flow_log_selects_by_contract_kind_and_labels_instead_of_naming_interfaces() {
        let select = "[[flow_log]]\ntarget = '/x'\nname = 'prod'\nselect = { contract = '1', label.env = 'prod', kind = 'nic' }\n";
        let fixed = "[[flow_log]]\ntarget = '/x'\ninterfaces = ['eth0']\n";
        let templates = parse(&format!("{INVENTORY}{fixed}{select}")).expect("good");
        assert_eq!((templates.all.len(), templates.fixed), (1, vec![Selector::name("eth0")]));
        assert_eq!(templates.all[0].select.labels.get("env"), Some("prod"));
        let everything = "[[flow_log]]\ntarget = '/x'\nselect = {}\n";
        assert_eq!(parse(&format!("{INVENTORY}{everything}")).expect("good").all[0].select, Select::default());
    }

    #[test]
    fn what_a_selection_cannot_have_is_refused_with_field_and_remedy() {
        let log = |more: &str| format!("[[flow_log]]\ntarget = '/x'\n{more}\n");
        for (text, words) in [
            (log("select = {}"), "select `flowlog`: selects from the inventory: add `[inventory]`"),
            (format!("{INVENTORY}{}", log("select = {}\ninterfaces = ['e']")), "interfaces `flowlog`: is not for"),
            (format!("{INVENTORY}{}", log("select = {}\nwait = false")), "wait `flowlog`: is not for"),
            (format!("{INVENTORY}{}", log("select = { kind = 'vm' }")), "unknown variant `vm`"),
            (format!("{INVENTORY}{}", log("select = { label.env = 7 }")), "invalid type"),
            (format!("{INVENTORY}{}", log("select = { contract = 'a/b' }")), "select.contract `a/b`"),
            (format!("{INVENTORY}{}", log("select = {}").repeat(2)), "two flow logs that select have this name"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(words), "{error}");
        }
    }
}
