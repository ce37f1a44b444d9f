//! What a query asks of an answer, as the cloud API has it: how deep, which items, in which order, which page.
//!
//! ```text
//! depth=1                    0: references only; 1: what is on the list; each further step, one level of what is below it
//! filter.name=web            items whose field contains this, whatever its case; several of one field: any of them
//! filter.createdAfter=…      `yyyy-MM-dd HH:mm:ss`, also createdBefore, lastModifiedAfter, lastModifiedBefore
//! orderBy=name               by this field, ascending; also order-by
//! offset=10&limit=5          also maxResults
//! ```

use axum::{extract::Query as Pairs, http::Uri};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde_json::{Value, json};

use super::error::ApiError;

/// Items on a page, unless asked for otherwise, and at most: as the cloud API has it.
pub(crate) const LIMIT_DEFAULT: usize = 1_000;
const LIMIT_MAX: usize = 10_000;
/// Deepest answer, as the cloud API has it.
const DEPTH_MAX: usize = 10;

/// See the module's head. Parameters that are not named there are tolerated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub depth: usize,
    pub offset: usize,
    pub limit: usize,
    filters: Vec<Filter>,
    order_by: Option<String>,
    /// What links to other pages say as well.
    rest: String,
}

/// What items must have.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    /// This field contains any of these, in lower case.
    Contains { field: String, any: Vec<String> },
    /// This date is after that one, or before.
    Date { field: &'static str, after: bool, than: Timestamp },
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// 422 for numbers and dates that the cloud API refuses.
    pub(crate) fn of(uri: &Uri) -> Result<Self, ApiError> {
        let invalid =
            |name: &str, value: &str, rule: &str| ApiError::invalid(vec![format!("{name} `{value}`: {rule}")]);
        let Pairs(pairs): Pairs<Vec<(String, String)>> =
            Pairs::try_from_uri(uri).map_err(|e| invalid("query", uri.query().unwrap_or_default(), &e.to_string()))?;
        let number = |name: &str, least: usize, most: usize| {
            let Some((_, value)) = pairs.iter().find(|(n, _)| n == name) else { return Ok(None) };
            let parsed = value.parse().ok().filter(|n| (least..=most).contains(n));
            let rule =
                if most == usize::MAX { format!("use {least} or more") } else { format!("use {least} to {most}") };
            parsed.map(Some).ok_or_else(|| invalid(name, value, &rule))
        };
        let limit = number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
        let most = number("maxResults", 1, LIMIT_MAX)?.unwrap_or(LIMIT_MAX);
        let mut filters: Vec<Filter> = Vec::new();
        for (name, value) in pairs.iter().filter_map(|(name, value)| Some((name.strip_prefix("filter.")?, value))) {
            let filter = Filter::of(name, value).ok_or_else(|| invalid(name, value, "use `yyyy-MM-dd HH:mm:ss`"))?;
            Filter::add(&mut filters, filter);
        }
        let of_pages = |pair: &&str| !["offset", "limit"].contains(&pair.split('=').next().unwrap_or_default());
        let rest = uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()).filter(of_pages);
        Ok(Self {
            depth: number("depth", 0, DEPTH_MAX)?.unwrap_or(0),
            offset: number("offset", 0, usize::MAX)?.unwrap_or(0),
            limit: limit.min(most),
            filters,
            order_by: pairs.iter().find(|(n, _)| n == "orderBy" || n == "order-by").map(|(_, field)| field.clone()),
            rest: rest.flat_map(|pair| ["&", pair]).collect(),
        })
    }

    /// The items that are wanted, of all pages, in the order that is wanted.
    pub(crate) fn chosen(&self, mut items: Vec<Value>) -> Vec<Value> {
        items.retain(|item| self.filters.iter().all(|f| f.takes(item)));
        if let Some(field) = &self.order_by {
            items.sort_by_cached_key(|item| text(item, field).map(|t| t.to_lowercase()));
        }
        items
    }

    /// An item of a list, as deep as is wanted.
    pub(crate) fn deep(&self, item: Value) -> Value {
        if self.depth == 0 { reference(&item) } else { item }
    }

    /// The query of another page.
    pub(crate) fn page(&self, offset: usize) -> String {
        format!("offset={offset}&limit={}{}", self.limit, self.rest)
    }
}

impl Filter {
    fn of(name: &str, value: &str) -> Option<Self> {
        let (field, after) = match name {
            "createdAfter" => ("createdDate", true),
            "createdBefore" => ("createdDate", false),
            "lastModifiedAfter" => ("lastModifiedDate", true),
            "lastModifiedBefore" => ("lastModifiedDate", false),
            _ => return Some(Self::Contains { field: name.to_owned(), any: vec![value.to_lowercase()] }),
        };
        let than = match value.parse::<DateTime>() {
            Ok(utc) => utc.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp(),
            Err(_) => return None,
        };
        Some(Self::Date { field, after, than })
    }

    /// Adds one: of the same field, any will do.
    fn add(all: &mut Vec<Self>, new: Self) {
        if let Self::Contains { field, any } = &new
            && let Some(Self::Contains { any: known, .. }) =
                all.iter_mut().find(|f| matches!(f, Self::Contains { field: other, .. } if other == field))
        {
            known.extend(any.iter().cloned());
            return;
        }
        all.push(new);
    }

    fn takes(&self, item: &Value) -> bool {
        match self {
            Self::Contains { field, any } => text(item, field).is_some_and(|text| {
                let text = text.to_lowercase();
                any.iter().any(|value| text.contains(value))
            }),
            Self::Date { field, after, than } => {
                let date = text(item, field).and_then(|text| text.parse::<Timestamp>().ok());
                date.is_some_and(|date| if *after { date > *than } else { date < *than })
            }
        }
    }
}

/// A field of an item, among its properties, what is said about it, or by its full name.
fn text(item: &Value, field: &str) -> Option<String> {
    let at = |pointer: String| item.pointer(&pointer).filter(|v| !v.is_null());
    let found = match field {
        // Of requests.
        "status" | "requestStatus" => at("/metadata/requestStatus/metadata/status".to_owned()),
        _ => {
            let path = field.replace('~', "~0").replace('/', "~1").replace('.', "/");
            ["/properties/", "/metadata/", "/"].into_iter().find_map(|place| at(format!("{place}{path}")))
        }
    };
    found.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// What names an item, and nothing more.
pub(crate) fn reference(item: &Value) -> Value {
    json!({"id": item["id"], "type": item["type"], "href": item["href"]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, ApiError> {
        Query::of(&format!("/cloudapi/v6/requests?{text}").parse().expect("a URI"))
    }

    fn items() -> Vec<Value> {
        let item = |name: &str, by: &str, date: &str| {
            json!({"id": name, "type": "flow-log", "href": "h", "properties": {"name": name},
                   "metadata": {"createdBy": by, "createdDate": date}})
        };
        vec![
            item("web", "Ann", "2026-01-01T00:00:00Z"),
            item("Db", "bob", "2026-02-01T00:00:00Z"),
            item("api", "ann", "2026-03-01T00:00:00Z"),
        ]
    }

    fn names(text: &str) -> Vec<String> {
        let query = query(text).expect("good");
        query.chosen(items()).iter().map(|i| i["id"].as_str().expect("id").to_owned()).collect()
    }

    #[test]
    fn items_are_filtered_and_ordered_by_any_field() {
        assert_eq!(names(""), ["web", "Db", "api"]);
        assert_eq!(names("orderBy=name"), ["api", "Db", "web"]);
        assert_eq!(names("order-by=createdBy"), ["web", "api", "Db"]);
        assert_eq!(names("filter.name=B"), ["web", "Db"], "part of it, whatever the case");
        assert_eq!(names("filter.name=web&filter.name=api"), ["web", "api"], "any of a field");
        assert_eq!(names("filter.name=b&filter.createdBy=ann"), ["web"], "all of several fields");
        assert_eq!(names("filter.properties.name=db&filter.metadata.createdBy=bob"), ["Db"]);
        assert_eq!(names("filter.createdAfter=2026-01-15%2000:00:00&filter.createdBefore=2026-02-15+00:00:00"), ["Db"]);
        assert_eq!(names("filter.colour=red"), [""; 0], "what nobody has");
        assert_eq!(names("pretty=true&colour=red&&=&filter"), ["web", "Db", "api"], "the rest is tolerated");
    }

    #[test]
    fn numbers_and_dates_are_in_the_clouds_bounds_or_refused() {
        for bad in [
            "limit=0",
            "limit=10001",
            "limit=x",
            "offset=-1",
            "depth=11",
            "depth=",
            "maxResults=0",
            "filter.createdAfter=yesterday",
        ] {
            assert!(query(bad).is_err(), "{bad}");
        }
        let good = query("limit=7&offset=3&depth=10&maxResults=2").expect("good");
        assert_eq!((good.limit, good.offset, good.depth), (2, 3, 10));
        assert_eq!(query("").map(|q| (q.limit, q.offset, q.depth)).ok(), Some((LIMIT_DEFAULT, 0, 0)));
    }

    #[test]
    fn links_keep_what_was_asked_for() {
        let asked = query("depth=1&limit=2&filter.name=a%26b&offset=2").expect("good");
        assert_eq!(asked.page(4), "offset=4&limit=2&depth=1&filter.name=a%26b");
        assert_eq!(reference(&items()[0]), json!({"id": "web", "type": "flow-log", "href": "h"}));
    }
}
