//! How records become parcels.

use prost::Message;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use super::rig::{names, request};
use crate::forward::ExporterOptions;
use crate::forward::load::Load;
use crate::forward::parcel::{Loader, Parcel};
use crate::otlp::Encoding;

fn load(sequence: u64, encoding: Encoding, name: &str) -> Load {
    Load::uncompressed(sequence, encoding, request([name]))
}

fn all(loader: &mut Loader) -> Vec<Parcel> {
    std::iter::from_fn(|| loader.take(true)).collect()
}

#[test]
fn a_joined_body_decodes_to_the_union_of_its_parts_in_order() {
    let mut loader = Loader::new(&ExporterOptions::default());
    let bodies = ["a", "b", "c"].map(|name| request([name]));
    for (sequence, body) in bodies.iter().enumerate() {
        assert_eq!(
            loader.push(Load::uncompressed(sequence as u64, Encoding::Identity, body.clone())),
            1
        );
    }
    let [parcel] = <[Parcel; 1]>::try_from(all(&mut loader)).unwrap();
    let union: Vec<_> = bodies
        .iter()
        .flat_map(|body| ExportTraceServiceRequest::decode(body.clone()).unwrap().resource_spans)
        .collect();
    assert_eq!(
        ExportTraceServiceRequest::decode(&parcel.wire_body().concat()[..])
            .unwrap()
            .resource_spans,
        union
    );
}

#[test]
fn only_what_is_sent_in_the_same_encoding_is_joined_and_never_beyond_the_limit() {
    let options = ExporterOptions {
        max_request_size: 3 * request(["a"]).len(),
        ..ExporterOptions::default()
    };
    let mut loader = Loader::new(&options);
    for sequence in 0..8 {
        let encoding = if sequence % 2 == 0 {
            Encoding::Identity
        } else {
            Encoding::Gzip
        };
        loader.push(load(sequence, encoding, "a"));
    }
    let first_full = loader.take(false).unwrap();
    let second_full = loader.take(false).unwrap();
    assert!(loader.take(false).is_none(), "the others are not full");
    let sequences = |parcel: &Parcel| -> Vec<u64> { parcel.parts.iter().map(|part| part.sequence).collect() };
    assert_eq!(
        [sequences(&first_full), sequences(&second_full)],
        [vec![0, 2, 4], vec![1, 3, 5]]
    );
    assert_eq!(
        all(&mut loader).iter().map(sequences).collect::<Vec<_>>(),
        [vec![6], vec![7]]
    );
    assert_eq!((loader.held(), loader.is_empty()), (0, true));
}

#[test]
fn a_part_that_is_cut_keeps_its_number_of_items_in_total() {
    let options = ExporterOptions {
        max_request_size: 200,
        ..ExporterOptions::default()
    };
    let mut loader = Loader::new(&options);
    let spans: Vec<String> = (0..50).map(|index| format!("span {index:02}")).collect();
    let mut load = Load::uncompressed(7, Encoding::Identity, request(spans.iter().map(String::as_str)));
    load.set_items(1_000_003);
    let pieces = loader.push(load);
    let parcels = all(&mut loader);
    assert_eq!(parcels.len(), pieces);
    assert_eq!(parcels.iter().map(Parcel::items).sum::<u64>(), 1_000_003);
    let found: Vec<String> = parcels
        .iter()
        .flat_map(|parcel| names(&parcel.wire_body().concat()))
        .collect();
    assert_eq!(found, spans);
}

#[test]
fn taking_apart_keeps_every_part_in_order_until_each_is_alone() {
    let mut loader = Loader::new(&ExporterOptions::default());
    for sequence in 0..10 {
        loader.push(load(sequence, Encoding::Gzip, "a"));
    }
    let mut parcels = all(&mut loader);
    while parcels.iter().any(|parcel| parcel.parts.len() > 1) {
        parcels = parcels.into_iter().flat_map(Parcel::ungroup).collect();
    }
    let sequences: Vec<u64> = parcels
        .iter()
        .flat_map(|parcel| &parcel.parts)
        .map(|part| part.sequence)
        .collect();
    assert_eq!(sequences, (0..10).collect::<Vec<_>>());
    assert_eq!(parcels.len(), 10);
}
