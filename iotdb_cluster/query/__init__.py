"""The query room: from a statement to the rows of its answer, without input or output of its own.

`prepare(statement, context)` gives a `Plan`: its header at once, its rows by `fetch`. Both are generators (`Steps`)
that yield the requests of `requests` and are sent their answers; `drive` runs them with a function that answers. What
the answers need of the points is computed by `fragments` on the storage of a data group; `codec` brings requests and
answers over the wire.
"""

from __future__ import annotations

from iotdb_cluster.query.devices import prepare_devices
from iotdb_cluster.query.errors import refuse
from iotdb_cluster.query.plan import Header, Plan, QueryContext, drive
from iotdb_cluster.query.requests import Request, SeriesInfo, Steps
from iotdb_cluster.query.select import prepare_select
from iotdb_cluster.query.show import prepare_show
from iotdb_cluster.sql.statements import Select, Statement

__all__ = ["Header", "Plan", "QueryContext", "Request", "SeriesInfo", "Steps", "drive", "is_planned", "prepare"]


def prepare(statement: Statement, context: QueryContext) -> Steps[Plan]:
    """The plan of SELECT, SHOW or COUNT. Raises CallerError with the code and text that clients expect."""
    if isinstance(statement, Select):
        if statement.align_by_device:
            return (yield from prepare_devices(statement, context))
        return (yield from prepare_select(statement, context))
    steps = prepare_show(statement, context)
    if steps is None:
        raise refuse(f"{statement.operation} is not a query that is planned here")
    return (yield from steps)


def is_planned(statement: Statement) -> bool:
    """Whether `prepare` takes it: SELECT, and SHOW and COUNT of all kinds; LIST of users and roles is not here."""
    return isinstance(statement, Select) or statement.operation in ("SHOW", "SHOW_MERGE_STATUS")
