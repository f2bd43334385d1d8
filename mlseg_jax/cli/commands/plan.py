"""``plan``: memory, FLOPs and time on machines one does not have."""

import json

from mlseg_jax.cli.flags import required
from mlseg_jax.errors import UserError
from mlseg_jax.planning import plan, topologies


def run(flags) -> None:
    config = required(flags, "config")
    topology = topologies.parse_topology(required(flags, "topology"))
    topologies.prepare(topology)
    batch = flags.batch
    if flags.largest_batch:
        batch = plan.largest_batch(config, topology, batch or 1, effort=flags.effort)
        if batch == 0:
            raise UserError(f"Not even one image per chip fits on {topology.name}.")
    made = plan.plan(config, topology, batch, effort=flags.effort)
    rows = []
    if flags.label_table:
        rows = plan.label_table(config, topology, batch, effort=flags.effort)
    if flags.json:
        print(json.dumps(made.as_json() | {"label_table": rows}))
        return
    print(plan.as_text(made))
    if rows:
        print("\n" + plan.table_text(rows))
