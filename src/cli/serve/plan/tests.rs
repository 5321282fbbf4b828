use super::*;

const GRANITE_2B: Footprint = Footprint {
    weights: 2_600_000_000,
    kv_page: 2_785_280,
    kv_page_values: 2_621_440,
    state: 0,
    step_row: 4 * (2 * 49_159 + 8 * 2048 + 3 * 8192),
};

const CLIENTS: Clients = Clients {
    connections: 1024,
    connection_bytes: 112 << 10,
    request_bytes: 64 << 20,
    reading_bytes: 320 << 20,
};
/// All that is neither weights nor cache.
const BESIDE: u64 = MARGIN + (112 << 20) + (64 << 20) + (320 << 20);

const BATCH: Batch = Batch {
    context: 131_072,
    max_batch: 16,
    slots: 32,
};

const fn kv(asked: Option<ByteSize>) -> GivenCaches {
    GivenCaches {
        kv: asked,
        states: None,
    }
}

fn plan(asked: Option<u64>, limit: u64) -> Result<u64> {
    let limit = Limit {
        bytes: limit,
        source: "cgroup v2",
    };
    let asked = asked.map(ByteSize);
    caches(kv(asked), GRANITE_2B, BATCH, CLIENTS, Some(limit)).map(|caches| caches.kv_bytes)
}

fn sizes(given: GivenSizes, limit: u64) -> ClientSizes {
    let limit = Limit {
        bytes: limit,
        source: "cgroup v2",
    };
    ClientSizes::new(given, CLIENTS.connection_bytes, Some(&limit))
}

#[test]
fn on_a_small_machine_clients_may_hold_less() {
    let full = ClientSizes {
        body_bytes: 1 << 20,
        request_bytes: 64 << 20,
        connections: 1024,
    };
    let none = GivenSizes::default();
    assert_eq!(ClientSizes::new(none, 112 << 10, None), full);
    assert_eq!(sizes(none, 4 << 30), full);
    for limit in [64 << 20, 256 << 20, 512 << 20, 1 << 30, 2 << 30] {
        let small = sizes(none, limit);
        assert!(small != full, "{limit}");
        let held = small.clients(CLIENTS.connection_bytes).bytes();
        let least = LEAST_DEFAULTS.clients(CLIENTS.connection_bytes).bytes();
        assert!(held <= (limit / 8).max(least), "{limit}: {small:?}");
    }
    assert_eq!(sizes(none, 1 << 20), LEAST_DEFAULTS);
}

#[test]
fn what_the_operator_gives_is_never_made_smaller() {
    let given = GivenSizes {
        body_bytes: Some(8 << 20),
        ..GivenSizes::default()
    };
    let small = sizes(given, 256 << 20);
    assert_eq!(small.body_bytes, 8 << 20);
    assert_eq!(small.request_bytes, 32 << 20, "four such bodies");
    assert_eq!(small.connections, LEAST_DEFAULTS.connections);
    let given = GivenSizes {
        body_bytes: Some(1 << 20),
        request_bytes: Some(100 << 20),
        connections: Some(5000),
    };
    let all = sizes(given, 256 << 20);
    assert_eq!((all.request_bytes, all.connections), (100 << 20, 5000));
}

#[test]
fn with_plenty_of_memory_every_place_has_its_share() {
    assert_eq!(plan(None, 24 << 30).unwrap(), 16 * 64 * 2_785_280);
}

#[test]
fn with_little_memory_half_of_the_rest_is_left_alone() {
    let limit = 4 << 30;
    assert_eq!(
        plan(None, limit).unwrap(),
        (limit - 2_600_000_000 - BESIDE) / 2
    );
}

#[test]
fn what_does_not_fit_is_refused_with_both_numbers() {
    let error = plan(None, 1 << 30).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not enough memory: needs 3.16 GiB (2.42 GiB weights, 2.66 MiB KV cache, 64.0 MiB requests, 320 MiB to read one, 112 MiB for 1024 connections, 256 MiB beside), limit 1.00 GiB (cgroup v2); smaller --kv-cache, --max-body, --max-connections need less"
    );
    assert_eq!(error.exit_code(), 78);
    assert!(plan(Some(2 << 30), 4 << 30).is_err());
    assert!(plan(Some(u64::MAX), 4 << 30).is_err());
    assert_eq!(plan(Some(1 << 30), 5 << 30).unwrap(), 1 << 30);
}

#[test]
fn states_that_do_not_fit_are_refused_with_their_sum() {
    let hybrid = Footprint {
        state: 77_377_536,
        ..GRANITE_2B
    };
    let plan = |states: Option<u64>, limit| {
        let states = states.map(ByteSize);
        let limit = Limit {
            bytes: limit,
            source: "cgroup v2",
        };
        {
            let asked = GivenCaches {
                kv: Some(ByteSize(1 << 30)),
                states,
            };
            caches(asked, hybrid, BATCH, CLIENTS, Some(limit))
        }
    };
    let needed = GRANITE_2B.weights + (1 << 30) + BESIDE + 32 * 77_377_536;
    let fits = Caches {
        kv_bytes: 1 << 30,
        snapshots: 0,
    };
    assert_eq!(plan(Some(0), needed).unwrap(), fits);
    let error = plan(Some(0), needed - 1).unwrap_err().to_string();
    let sum = "2.31 GiB for 32 states and 0 snapshots";
    assert!(error.contains(sum), "{error}");
    // By default a quarter of the rest is for snapshots, and at most one for each place in the batch.
    let rest = |rest: u64| plan(None, needed - (1 << 30) + rest).unwrap().snapshots;
    assert_eq!(rest(8 * 77_377_536 + (2 << 30)), 8);
    assert_eq!(rest(16 << 30), 16);
    assert_eq!(
        plan(Some(3 * 77_377_536 + 1), 64 << 30).unwrap().snapshots,
        3
    );
    assert!(error.contains("smaller --max-batch"), "{error}");
}

#[test]
fn a_cache_without_room_for_a_page_is_refused() {
    let error = plan(Some(10), 24 << 30).unwrap_err();
    let line = "--kv-cache: 10 B is too small: one page takes 2.66 MiB";
    assert_eq!(error.to_string(), line);
}

#[test]
fn a_step_of_a_thousand_rows_is_in_the_plan() {
    let plan = |max_batch, limit| {
        let limit = Limit {
            bytes: limit,
            source: "cgroup v2",
        };
        let asked = Some(ByteSize(1 << 30));
        {
            let batch = Batch {
                max_batch,
                slots: 2 * max_batch,
                ..BATCH
            };
            caches(kv(asked), GRANITE_2B, batch, CLIENTS, Some(limit))
        }
    };
    let enough_for_128 = GRANITE_2B.weights + (1 << 30) + BESIDE;
    assert!(plan(128, enough_for_128).is_ok());
    assert!(plan(1024, enough_for_128).is_err());
    assert!(plan(1024, enough_for_128 + (1 << 30)).is_ok());
}

#[test]
fn the_last_byte_that_clients_can_hold_is_in_the_plan() {
    let kv = 1 << 30;
    let limit = GRANITE_2B.weights + kv + BESIDE;
    assert_eq!(plan(Some(kv), limit).unwrap(), kv);
    assert!(plan(Some(kv), limit - 1).is_err());
}
