// What nodes say to each other, on the meta, data and heartbeat ports alike: strict binary protocol, framed.
// A connection starts with one `hello`; everything else on it is refused before that.

// First message of a connection; sent again it asks for a sign of life. `version` is that of this file.
struct Hello {
  1: required i32 version;
  2: required i32 node;            // identifier of the sender, 0 while it has none
  3: required binary incarnation;  // drawn at random when the node's directories were made
  4: required string purpose;      // which of the sender's streams this is, e.g. "data"
  5: optional string cluster;      // cluster name
  6: optional i64 start;           // how often the sender has started
}

// What went wrong. `kind`: 0 plain, 1 not the leader, 2 moved, 3 stale schema, 4 outcome unknown.
struct Failure {
  1: required i32 code;            // status code, 200 for a part that succeeded
  2: optional string message;
  3: optional i32 kind;
  4: optional i32 leader;          // node identifier, with kind 1
}

struct Answer {
  1: required i32 code;            // 200, or the status code of the failure
  2: optional string message;
  3: optional binary body;         // with code 200
  4: optional i32 leader;
  5: optional i32 kind;
  6: optional list<Failure> parts; // one entry a part of the call, in its order
}

service NodeService {
  Answer hello(1: Hello hello);

  // A loop turn's consensus messages of all groups towards this peer; lost ones are sent again by consensus itself.
  oneway void raft(1: binary batch);

  // Everything that wants an answer. Answers may come in any order.
  Answer call(1: string method, 2: binary body);
}
