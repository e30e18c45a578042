//! Every story in every order: all orders of up to four spans, some of more; in one request and in one each; sent again;
//! with the programs killed in between.

use crate::common::random;
use crate::story::{Sent, Story, request};
use crate::world::{World, compare};
use std::collections::BTreeMap;

/// Something that happened, told as spans and rows.
pub struct Case {
    pub name: &'static str,
    /// Whether its spans share a trace; where a case can be told both ways, there are two of it.
    pub one_trace: bool,
    pub tell: fn(&mut Story),
}

/// Spans in one trace.
pub const fn traced(name: &'static str, tell: fn(&mut Story)) -> Case {
    Case {
        name,
        one_trace: true,
        tell,
    }
}

/// Spans with a trace each.
pub const fn scattered(name: &'static str, tell: fn(&mut Story)) -> Case {
    Case {
        name,
        one_trace: false,
        tell,
    }
}

/// How many random orders are tried where there are more than four spans, unless `SPANLEDGER_CONTRACT_ORDERS` says more.
const RANDOM_ORDERS: usize = 12;

/// One way in which the spans of one story arrive.
pub struct Arrival {
    pub name: String,
    pub story: Story,
    /// What is sent together, in this order.
    pub steps: Vec<Vec<Sent>>,
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut order = order.clone();
        order.insert(at, count - 1);
        order
    };
    shorter
        .iter()
        .flat_map(|order| (0..count).map(move |at| insert(order, at)))
        .collect()
}

/// All orders of so many spans; of more than four, some.
fn orders(count: usize, random: &mut fastrand::Rng) -> Vec<Vec<usize>> {
    if count <= 4 {
        return permutations(count);
    }
    let orders = std::env::var("SPANLEDGER_CONTRACT_ORDERS");
    let orders = orders.map_or(RANDOM_ORDERS, |orders| orders.parse().unwrap());
    (0..orders).map(|_| shuffled(count, random)).collect()
}

/// One order of so many spans.
pub fn shuffled(count: usize, random: &mut fastrand::Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    random.shuffle(&mut order);
    order
}

/// A story told once more, in requests of so many spans in this order.
pub fn arrival(name: &str, story: Story, order: &[usize], size: usize) -> Arrival {
    let spans: Vec<Sent> = order.iter().map(|at| story.sent[*at].clone()).collect();
    Arrival {
        name: format!("{name}, {order:?}, {size} in a request"),
        story,
        steps: spans.chunks(size).map(<[Sent]>::to_vec).collect(),
    }
}

fn arrivals(case: &Case, random: &mut fastrand::Rng) -> Vec<Arrival> {
    let tell = |random: &mut fastrand::Rng| {
        let mut story = Story::new(random);
        story.one_trace = case.one_trace;
        (case.tell)(&mut story);
        story
    };
    let count = tell(&mut random.clone()).sent.len();
    let mut arrivals = Vec::new();
    for order in orders(count, random) {
        let some = if count <= 4 { 1 } else { random.usize(1..=3) };
        arrivals.push(arrival(case.name, tell(random), &order, count));
        arrivals.push(arrival(case.name, tell(random), &order, some));
    }
    arrivals
}

/// Tells every case in every order to both programs, and compares all rows.
pub async fn check(test: &str, cases: &[Case]) {
    let mut random = random(test);
    let world = World::start(&mut random).await;
    check_in(test, cases, world, random, false).await;
}

/// The same with two programs on one database: each request goes to either of them.
pub async fn check_through_two_sidecars(test: &str, cases: &[Case]) {
    if crate::common::postgres::skipped() {
        return;
    }
    let mut random = random(test);
    let world = World::sharing_a_database(&mut random).await;
    check_in(test, cases, world, random, true).await;
}

async fn check_in(test: &str, cases: &[Case], mut world: World, mut random: fastrand::Rng, either: bool) {
    let arrivals: Vec<Arrival> = cases.iter().flat_map(|case| arrivals(case, &mut random)).collect();
    deliver(&mut world, &arrivals, &mut random, either).await;
    let found = world.settle().await;
    let wrong = compare(
        &found,
        arrivals.iter().map(|arrival| (arrival.name.as_str(), &arrival.story)),
    );
    println!("{test}: {} stories in {} ways", cases.len(), arrivals.len());
    if !wrong.is_empty() {
        let mut by_case: BTreeMap<&str, usize> = BTreeMap::new();
        for line in &wrong {
            let case = cases
                .iter()
                .find(|case| line.contains(case.name))
                .map_or("?", |case| case.name);
            *by_case.entry(case).or_default() += 1;
        }
        let some: Vec<&String> = by_case
            .keys()
            .flat_map(|case| wrong.iter().filter(|line| line.contains(*case)).take(3))
            .collect();
        panic!("{} rows are wrong: {by_case:#?}\n{some:#?}", wrong.len());
    }
}

/// Sends everything, many stories at a time, with repetitions, and with the programs killed in between.
pub async fn deliver(world: &mut World, arrivals: &[Arrival], random: &mut fastrand::Rng, either: bool) {
    let rounds = arrivals.iter().map(|arrival| arrival.steps.len()).max().unwrap_or(0);
    let mut earlier: Vec<&Sent> = Vec::new();
    for round in 0..rounds {
        let mut steps: Vec<&Vec<Sent>> = arrivals.iter().filter_map(|arrival| arrival.steps.get(round)).collect();
        random.shuffle(&mut steps);
        while !steps.is_empty() {
            let taken = steps.split_off(steps.len().saturating_sub(random.usize(1..200)));
            let mut spans: Vec<&Sent> = taken.into_iter().flatten().collect();
            // The same spans once more in a request of other bytes: the rows do not mind.
            let again = random.usize(..4).min(earlier.len());
            spans.extend((0..again).map(|_| earlier[random.usize(..earlier.len())]));
            let request = request(spans.iter().copied());
            if either {
                world.send_to(random.usize(..2), &request).await;
            } else {
                world.send(&request).await;
            }
            earlier.extend(spans);
            if random.u8(..4) == 0 {
                world.send_again().await;
            }
        }
        if round == 0 || round == 2 {
            world.kill_and_restart().await;
        }
    }
}

#[test]
fn four_spans_have_twenty_four_orders() {
    let orders: std::collections::BTreeSet<_> = permutations(4).into_iter().collect();
    assert_eq!(orders.len(), 24);
}
