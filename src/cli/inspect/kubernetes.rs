//! `inspect --kubernetes`: values with which the Helm chart reserves as much memory as `serve` takes.

use std::fmt;

use serde::Serialize;

use crate::cli::serve::descriptors::ADMIN_CONNECTIONS;
use crate::cli::serve::plan::{
    self, Batch, Caches, ClientSizes, GivenCaches, GivenSizes, Parts, TOKENS_PER_PLACE,
};
use crate::engine;
use crate::error::Result;
use crate::http::server;
use crate::model::{Footprint, ModelConfig};

/// The unit of the chart's sizes and flags.
const MEBIBYTE: u64 = 1 << 20;

/// Values for the chart in `deploy/helm/microgranite`, in the chart's own words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Values {
    model: Model,
    sequences: Sequences,
    limits: ClientLimits,
    /// For people only: the chart computes it again from the values.
    #[serde(skip)]
    parts: Parts,
    #[serde(skip)]
    name: String,
}

#[derive(Debug, Serialize)]
struct Model {
    shape: Shape,
}

/// A [`Footprint`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    weights_bytes: u64,
    kv_page_bytes: u64,
    state_bytes: u64,
    step_row_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Sequences {
    batch: usize,
    tokens: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientLimits {
    connections: usize,
    #[serde(rename = "bodyKiB")]
    body_kib: usize,
    #[serde(rename = "requestMemoryMiB")]
    request_memory_mib: u64,
}

impl Shape {
    const fn of(footprint: Footprint) -> Self {
        Self {
            weights_bytes: footprint.weights,
            kv_page_bytes: footprint.kv_page,
            state_bytes: footprint.state,
            step_row_bytes: footprint.step_row,
        }
    }
}

impl Values {
    /// The values for the model `name`, with the defaults of `serve`.
    ///
    /// # Errors
    /// Those of [`plan::caches`].
    pub fn of(name: &str, config: &ModelConfig, footprint: Footprint) -> Result<Self> {
        let engine = engine::Settings::default();
        let batch = Batch {
            context: config.max_positions,
            max_batch: engine.max_batch,
            slots: engine.slots(),
        };
        let connection_bytes = server::Settings::default().connection_bytes();
        let sizes = ClientSizes::new(GivenSizes::default(), connection_bytes, None);
        let mut clients = sizes.clients(connection_bytes);
        // The chart's pods have an admin port.
        clients.connections += ADMIN_CONNECTIONS;
        let caches = plan::caches(GivenCaches::default(), footprint, batch, clients, None)?;
        let caches = Caches {
            // The chart gives the size of the cache in whole mebibytes.
            kv_bytes: caches.kv_bytes.next_multiple_of(MEBIBYTE),
            ..caches
        };
        Ok(Self {
            model: Model {
                shape: Shape::of(footprint),
            },
            sequences: Sequences {
                batch: batch.max_batch,
                tokens: batch.context.min(TOKENS_PER_PLACE),
            },
            limits: ClientLimits {
                connections: sizes.connections,
                body_kib: sizes.body_bytes >> 10,
                request_memory_mib: sizes.request_bytes as u64 / MEBIBYTE,
            },
            parts: Parts::new(footprint, batch, clients, caches),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            model: Model { shape },
            sequences,
            limits,
            parts,
            name,
        } = self;
        writeln!(
            f,
            "# {name}, for the Helm chart: helm install NAME deploy/helm/microgranite -f THIS-FILE"
        )?;
        writeln!(f, "model:\n  shape:")?;
        writeln!(f, "    weightsBytes: {}", shape.weights_bytes)?;
        writeln!(f, "    kvPageBytes: {}", shape.kv_page_bytes)?;
        writeln!(f, "    stateBytes: {}", shape.state_bytes)?;
        writeln!(f, "    stepRowBytes: {}", shape.step_row_bytes)?;
        writeln!(f, "sequences:")?;
        writeln!(f, "  batch: {}", sequences.batch)?;
        writeln!(f, "  tokens: {}", sequences.tokens)?;
        writeln!(f, "limits:")?;
        writeln!(f, "  connections: {}", limits.connections)?;
        writeln!(f, "  bodyKiB: {}", limits.body_kib)?;
        writeln!(f, "  requestMemoryMiB: {}", limits.request_memory_mib)?;
        writeln!(f, "# What a pod takes at most with these values:")?;
        let Sequences { batch, tokens } = sequences;
        let clients = parts.connections + parts.requests + parts.reading;
        let rows = [
            (parts.weights, "weights at int8".to_owned()),
            (
                parts.kv,
                format!("KV cache: {batch} sequences of {tokens} tokens"),
            ),
            (
                parts.states,
                "states of sequences and snapshots of them".to_owned(),
            ),
            (
                clients,
                "connections, requests, and reading the longest one".to_owned(),
            ),
            (parts.rest, "tokenizer, activations, code".to_owned()),
            (
                parts.total(),
                "in all; the chart adds its headroom".to_owned(),
            ),
        ];
        for (bytes, what) in rows.iter().filter(|(bytes, _)| *bytes > 0) {
            writeln!(f, "# {:>8} MiB  {what}", (bytes + MEBIBYTE / 2) / MEBIBYTE)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::model::{footprint, shapes};

    /// The chart's table of published models has the sizes that the program computes.
    #[test]
    fn the_charts_table_of_models_is_what_the_program_computes() {
        let mut table = String::from(
            "# The sizes of published models in bytes, as `microgranite inspect REF --kubernetes` prints them: the weights at int8, a page of 64\n\
             # tokens in the KV cache, the state of a sequence, and a row of a step.\n",
        );
        for name in shapes::names() {
            let Shape {
                weights_bytes,
                kv_page_bytes,
                state_bytes,
                step_row_bytes,
            } = Shape::of(footprint(&shapes::named(name).expect(name)));
            writeln!(
                table,
                "{name}: {{weightsBytes: {weights_bytes}, kvPageBytes: {kv_page_bytes}, stateBytes: {state_bytes}, stepRowBytes: {step_row_bytes}}}"
            )
            .expect("text");
        }
        let shipped = include_str!("../../../deploy/helm/microgranite/models.yaml");
        assert_eq!(shipped, table, "it should be\n{table}");
    }

    #[test]
    fn the_sum_is_that_of_the_servers_own_plan() {
        let config = shapes::named("granite-4.0-h-micro").expect("published");
        let values = Values::of("h-micro", &config, footprint(&config)).expect("it fits");
        let Parts { kv, states, .. } = values.parts;
        assert_eq!(kv, (16 * 64 * 278_528_u64).next_multiple_of(MEBIBYTE));
        assert_eq!(states, (32 + 16) * 77_377_536);
        let clients = ((1024 + 64) * (112 << 10)) + (64 << 20) + (320 << 20);
        assert_eq!(
            values.parts.total(),
            values.model.shape.weights_bytes + kv + states + clients + (256 << 20)
        );
    }
}
