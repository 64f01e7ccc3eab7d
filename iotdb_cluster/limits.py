"""Every bound of the server: its unit is in its name, its reason beside it.

A bound that one room alone needs stands here too, so that a reader finds what is finite in one place.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- frames and calls -------------------------------------------------------------------------------------------------
FRAME_BYTES_MAX = 512 * MIB  # the original's thrift_max_frame_size: a longer or negative length ends the connection
RESPONSE_BYTES_MAX = 15 * MIB  # the Go client refuses frames above 16,384,000 bytes
NESTING_DEPTH_MAX = 64  # structs and containers within one frame; stock clients need 5
CONNECTIONS_MAX = 10_000  # the original's max_concurrent_client_num
STATEMENT_CHARS_MAX = 4 * MIB  # a statement's text; also an entry could not carry more
STATEMENT_DEPTH_MAX = 200  # nested parentheses in a condition
STATEMENT_TOKENS_MAX = 100_000  # words and symbols of one statement, below 1 s of parsing (a plain INSERT is not bound)
STATEMENT_CACHE_ENTRIES_MAX = 1_000  # parsed statements that are remembered by their text
STATEMENT_CACHE_CHARS_MAX = 4_096  # longer texts are not remembered
QUERY_IDS_PER_NODE = 10**12  # query ids of node n follow n times this: they tell the node, for nine million nodes
STATEMENT_SHOWN_CHARS_MAX = 64 * KIB  # of a statement in the process list and in logs
SESSION_QUERIES_MAX = 1_000  # open cursors of one session
FETCH_ROWS_DEFAULT = 10_000  # where the client names none
FETCH_ROWS_MAX = 100_000  # a client that asks for more gets blocks of this many
CLIENT_OUTPUT_BYTES_MAX = 1 * MIB  # unsent bytes of one client connection before its next request waits
CLIENT_STALL_MS_MAX = 300_000  # a client that takes nothing for so long is disconnected
PEER_OUTPUT_BYTES_MAX = 64 * MIB  # unsent bytes towards one peer before log traffic to it is dropped and probed again
PEER_CALLS_MAX = 10_000  # unanswered calls towards one peer
PEER_PING_MS = 1_000  # a peer connection that is written to is asked this often whether it lives
PEER_SILENCE_MS_MAX = 5_000  # ... and ended when the answer takes longer: TCP alone would try for a quarter of an hour
PEER_BACKOFF_MS_MAX = 1_000  # longest pause between two attempts to connect to a peer
PEER_CONNECT_MS_MAX = 2_000  # an attempt to connect to a peer; a node that is up answers within milliseconds
PEER_CONNECT_WAIT_MS = 1_000  # a call waits so long for a connection to be made, then another node may be asked
PEER_RECONNECT_WAIT_MS = 50  # the same where the last attempt failed: the node is probably still away
FRAME_BYTES_BEFORE_LOGIN_MAX = 16 * MIB  # nobody unknown makes a node keep more
CALL_BYTES_MAX = 64 * MIB  # a call that is no insert; stock Java clients refuse frames above it themselves
DECODE_INLINE_BYTES_MAX = 1 * MIB  # longer frames are decoded on a worker thread
RECEIVE_BYTES_MAX = 1 * GIB  # all incomplete frames of a node's clients together; over it the one that grows is ended
SESSIONS_PER_CONNECTION_MAX = 100  # stock clients open one
PIPELINED_CALLS_MAX = 64  # whole frames of one client that wait for the one before them
RPC_PLANS_MAX = 4_096  # lists of measurements whose record layout is remembered
RPC_MEMO_BYTES_MAX = 16 * MIB  # sections of insert calls that are remembered with their meaning

# --- consensus --------------------------------------------------------------------------------------------------------
ENTRY_BYTES_MAX = 4 * MIB  # one log entry; larger calls are cut by group, then by rows
INFLIGHT_MESSAGES_MAX = 64  # append messages on the way to one follower
INFLIGHT_BYTES_MAX = 16 * MIB  # their bytes
READS_WAITING_MAX = 4096  # confirmations of its lead that a group's leader has open; a driver asks for few at a time
APPEND_BYTES_MAX = 1 * MIB  # entries of one append message (one larger entry goes alone)
UNCOMMITTED_ENTRIES_MAX = 100_000  # the same, in entries
UNAPPLIED_ENTRIES_MAX = 100_000  # committed and not applied, a group; beyond it a follower takes no more
READ_LAG_MAX = 1_000  # committed entries that a replica may lack where `mid` reads it as it is
UNCOMMITTED_BYTES_MAX = 64 * MIB  # proposed and not committed, a group; beyond it proposals are refused
APPLY_BYTES_MAX = 1 * MIB  # entries that are applied in one loop turn: of all groups, and at once of one
APPLY_ENTRIES_MAX = 512  # the same, in entries: one of a row takes some 6 us
COMMITTED_BYTES_PER_READY_MAX = 16 * MIB  # entries handed to apply at once
COMMITTED_ENTRIES_PER_READY_MAX = 100_000  # the same, in entries
SNAPSHOT_PIECE_BYTES = 4 * MIB  # of a file of a snapshot, in one call
SNAPSHOT_PIECES_IN_FLIGHT = 2  # of one transfer: one is read while the other is written
SNAPSHOT_BYTES_PER_S = 64 * MIB  # of all snapshots that a node sends
MIGRATION_BYTES_PER_S = 1024 * MIB  # of units that a node sends, and that it receives, for moves and repairs
MOVE_ROUND_BYTES = 1 * MIB  # a round of a move that brought less is followed by the fence
MOVE_FINAL_BYTES_MAX = 16 * MIB  # a move whose last round before the fence brings more is given up
MOVE_ROUNDS_MAX = 10
SLOWED_MS_FIRST = 25.0  # so long a write waits for slots whose rounds do not shrink, twice as long with each such round
SLOWED_MS_MAX = 400.0
FENCE_MS_MAX = 1_200  # so long slots may be without an owner; then they stay where they were
FENCE_MS_INHERITED = 400  # ... of a leader that finds them so: clients have waited for its election already
COPY_BUSY_BYTES_PER_S = 8 * MIB  # ... and no more than this while clients are served
COPY_PIECE_BYTES_BUSY = 256 * KIB  # of a file of a unit, in one call, while clients are served
COPY_PIECE_BYTES_MIN = 64 * KIB  # ... of a narrow bandwidth
COPY_PIECES_QUEUED = 64  # pieces that a node is asked for by other copies at once: a call for one waits behind them
COPY_PIECES_IN_FLIGHT = 4  # of one copy: some are read while others are written; one while clients are served
COPY_SYNCS_IN_FLIGHT = 2  # files that are synced while the next one comes; none while clients are served
COPY_UNSYNCED_BYTES = 64 * MIB  # written of a file before it is synced on the way
COPY_UNSYNCED_BYTES_BUSY = 1 * MIB  # ... while clients are served: logs are synced on the same disk
FOREGROUND_OPERATIONS_PER_S = 2  # entries and reads of data groups; above it clients are being served
MOVE_EMPTY_SLOTS_MAX = 2_000  # slots that hold nothing, moved at once
MOVE_UNITS_MAX = (
    8  # units of one move of slots that hold some: they are fenced together, and flushed and synced behind it
)
MOVE_BYTES_MAX = 512 * MIB  # ... and their bytes
SNAPSHOTS_SENT_MAX = 2  # transfers that a node sends at once; others wait
FORWARD_HOPS_MAX = 3  # a request forwarded more often is going round in circles
REQUESTS_AHEAD_MAX = 1 << 20  # sequence numbers of a node between its lowest unanswered request and its newest

# --- durable log ------------------------------------------------------------------------------------------------------
LOG_SEGMENT_BYTES = 64 * MIB  # one pre-allocated file
LOG_BLOCK_BYTES = 4 * KIB  # a batch starts on such a boundary
LOG_BATCH_BYTES_MAX = 16 * MIB  # one write and fdatasync
LOG_BYTES_MAX = 1 * GIB  # units that pin more than this are flushed, oldest first
LOG_ENTRIES_MAX = 1_000_000  # of one replica, for members that lag; the original's max_persist_raft_log_number_on_disk
LOG_CACHE_ENTRIES_MAX = 100_000  # recent entries kept in memory for followers
LOG_CACHE_BYTES_MAX = 64 * MIB  # recent entries kept in memory for followers
LOG_READ_AHEAD_BYTES = 4 * MIB  # old entries that are read on a worker before a lagging follower needs them
LOG_READ_AHEAD_RUNS = 1_000  # the same, as a number of records
LOG_COMPRESS_BYTES_MIN = 4 * KIB  # payloads of an append: fewer fit in the block that is written anyway
LOG_SAMPLE_BYTES = 4 * KIB  # compressed first, to see whether it pays for all
LOG_COMPRESS_RATIO_MAX = 0.75  # compressed bytes to plain ones; above it they stay as they are
LOG_SPARE_SEGMENTS = 2  # always pre-allocated, so that a full disk does not stop elections and deletes

# --- schema and partition ---------------------------------------------------------------------------------------------
SLOTS = 10_000  # fixed by the original; the table is 10,000 owners and epochs
SLOT_SALT = 2333  # seed of the slot hash
PARTITIONS_PER_STORAGE_GROUP_MAX = 10_000  # a client that sends ns for ms would open one a row
OPEN_INTENTS_MAX = 1_000  # unfinished deletes of one storage group
PATH_NODES_MAX = 256  # levels of a path
PATH_CHARS_MAX = 65_535
TAG_BYTES_MAX = 700  # tags and attributes of one series (tag_attribute_total_size)
QUERY_SERIES_MAX = 1_000  # max_deduplicated_path_num
SERIES_CACHE_MAX = 1_000_000  # resolved series that a coordinator remembers

# --- storage ----------------------------------------------------------------------------------------------------------
STATISTICS_ROWS = 1_024  # rows of a statistics block
PAGE_ROWS = 10_240  # rows of a page, a multiple of STATISTICS_ROWS
COMPACTED_PAGE_ROWS = 32_768  # ... in compacted files: 2 % smaller, and still decoded in 0.1 ms
LAST_CACHE_SERIES_MAX = 100_000  # latest points that a store remembers, some 400 bytes each
MEMTABLE_FLUSH_BYTES = 64 * MIB  # a unit's memtable of this size is sealed
MEMTABLE_FLUSH_AGE_MS = 3_600_000
MEMTABLE_BYTES_MAX = 512 * MIB  # all memtables of a node, waiting ones included, where the configuration names none
COMPACTION_BYTES_PER_S = 16 * MIB  # what compaction writes on a node
TABLET_ROWS_MAX = 1_000_000
TABLET_COLUMNS_MAX = 5_000
SCAN_BATCH_ROWS = 10_000  # rows of one batch between operators and between nodes
SCAN_BATCH_BYTES = 4 * MIB  # of one batch of long texts: a query that reads its first rows alone costs no more
CURSORS_MAX = 1_000  # open scans of one node
CURSOR_IDLE_MS_MAX = 300_000  # an untouched cursor ends

# --- time -------------------------------------------------------------------------------------------------------------
HEARTBEAT_INTERVAL_MS = 100
ELECTION_TIMEOUT_MS = 500  # randomised to twice
WRITE_TIMEOUT_MS = 30_000
READ_TIMEOUT_MS = 30_000
QUERY_TIMEOUT_MS = 60_000
CONNECT_TIMEOUT_MS = 20_000
LOOP_BLOCKED_MS_MAX = 10  # longer work goes to a worker thread
WORKER_THREADS = 4
INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1
