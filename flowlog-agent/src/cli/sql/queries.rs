//! The questions that come first, in SQL that all engines understand.

use super::{Engine, WORDS};

/// A query that has a name.
pub(super) struct NamedQuery {
    pub(super) name: &'static str,
    /// What it says, in a few words.
    pub(super) says: &'static str,
    /// `<table>` is the table; `<start>` and the like are columns whose names are words of SQL.
    sql: &'static str,
}

impl NamedQuery {
    /// As an engine understands it, with its words in front.
    pub(super) fn text(&self, engine: Engine, table: &str) -> String {
        let words = WORDS.map(|id| (format!("<{}>", id.name()), engine.quoted(id.name())));
        let sql = self.sql.replace("<table>", table);
        let sql = words.iter().fold(sql, |sql, (mark, quoted)| sql.replace(mark, quoted));
        format!("-- {}: {}\n{sql};\n", self.name, self.says)
    }
}

pub(super) const QUERIES: [NamedQuery; 8] = [
    NamedQuery {
        name: "top_talkers",
        says: "Who sends the most to whom",
        sql: "\
select srcaddr, dstaddr, sum(packets) as total_packets, sum(bytes) as total_bytes
from <table>
where log_status = 'OK'
group by srcaddr, dstaddr
order by total_bytes desc, srcaddr, dstaddr
limit 10",
    },
    NamedQuery {
        name: "rejects",
        says: "What is refused, by reason, rule and source",
        sql: "\
select reject_reason, verdict_rule, srcaddr, count(*) as flows, sum(packets) as total_packets
from <table>
where log_status = 'OK' and action = 'REJECT'
group by reject_reason, verdict_rule, srcaddr
order by total_packets desc, reject_reason, srcaddr
limit 20",
    },
    NamedQuery {
        name: "new_talkers",
        says: "Sources that nobody had seen before the last hour",
        sql: "\
select srcaddr, min(<start>) as first_start, sum(bytes) as total_bytes
from <table> cross join (select max(<start>) as latest from <table>) as newest
where log_status = 'OK'
group by srcaddr, latest
having min(<start>) > latest - 3600
order by first_start, srcaddr",
    },
    NamedQuery {
        name: "gaps",
        says: "When nobody looked: the node was down, or hooks were gone",
        sql: "\
select node_id, interface_id, <start> as gap_start, <end> as gap_end, <end> - <start> as gap_secs
from <table>
where skip_reason = 'gap'
order by gap_start, interface_id",
    },
    NamedQuery {
        name: "losses",
        says: "Packets that are in no row, and packets that were let through and died on their way",
        sql: "\
select kind, reason, total_packets, total_bytes
from (
  select 'in no row' as kind, skip_reason as reason, sum(packets) as total_packets, sum(bytes) as total_bytes
  from <table>
  where log_status = 'SKIPDATA' and packets is not null and skip_reason <> 'verdict_unknown'
  group by skip_reason
  union all
  select 'accepted, and lost' as kind, lost_reason as reason, sum(lost_packets) as total_packets, sum(lost_bytes) as total_bytes
  from <table>
  where lost_packets is not null
  group by lost_reason
) as all_losses
order by kind, reason",
    },
    NamedQuery {
        name: "balance",
        says: "What each window adds up to: the interface's own counters should have grown by as much (IP packets alone)",
        sql: "\
select interface_id, window_start,
  sum(case when log_status = 'OK' and action = 'ACCEPT' then packets else 0 end) as accepted,
  sum(case when log_status = 'OK' and action = 'REJECT' then packets else 0 end) as rejected,
  sum(case when skip_reason in ('ring_full', 'malformed', 'spool_full', 'not_encoded') then packets else 0 end) as in_no_row
from <table>
group by interface_id, window_start
order by interface_id, window_start",
    },
    NamedQuery {
        name: "port_scans",
        says: "Who has tried twenty ports of a host or more",
        sql: "\
select srcaddr, dstaddr, count(distinct dstport) as ports, sum(packets) as total_packets
from <table>
where log_status = 'OK' and protocol in (6, 17)
  and (initiator or action = 'REJECT' or (initiator is null and srcport > dstport))
group by srcaddr, dstaddr
having count(distinct dstport) >= 20
order by ports desc, srcaddr, dstaddr",
    },
    NamedQuery {
        name: "traffic_by_hour",
        says: "How much of what passes when",
        sql: "\
select date_trunc('hour', window_start) as hour_utc, flow_direction, action, sum(packets) as total_packets, sum(bytes) as total_bytes
from <table>
where log_status = 'OK'
group by date_trunc('hour', window_start), flow_direction, action
order by hour_utc, flow_direction, action",
    },
];
