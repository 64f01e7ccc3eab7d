import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Types;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.apache.iotdb.jdbc.IoTDBConnection;
import org.apache.iotdb.jdbc.IoTDBDatabaseMetadata;
import org.apache.iotdb.rpc.IoTDBConnectionException;
import org.apache.iotdb.rpc.StatementExecutionException;
import org.apache.iotdb.session.Session;
import org.apache.iotdb.session.SessionDataSet;
import org.apache.iotdb.session.pool.SessionDataSetWrapper;
import org.apache.iotdb.session.pool.SessionPool;
import org.apache.iotdb.tsfile.file.metadata.enums.CompressionType;
import org.apache.iotdb.tsfile.file.metadata.enums.TSDataType;
import org.apache.iotdb.tsfile.file.metadata.enums.TSEncoding;
import org.apache.iotdb.tsfile.read.common.Field;
import org.apache.iotdb.tsfile.read.common.RowRecord;
import org.apache.iotdb.tsfile.utils.Binary;
import org.apache.iotdb.tsfile.write.record.Tablet;
import org.apache.iotdb.tsfile.write.schema.MeasurementSchema;

/** Everything a stock 0.12 Java client can do, against a running cluster: Clients HOST PORT,PORT,... PART... */
public final class Clients {
  private static final List<TSDataType> TYPES =
      Arrays.asList(
          TSDataType.BOOLEAN, TSDataType.INT32, TSDataType.INT64, TSDataType.FLOAT, TSDataType.DOUBLE, TSDataType.TEXT);
  private static final List<String> NAMES = Arrays.asList("b", "i", "l", "f", "d", "t");
  private static final List<Object> VALUES = Arrays.asList(true, -7, 1L << 40, 1.5f, -0.1, "漢字 \"q\"");
  private static final String ROW = "true,-7,1099511627776,1.5,-0.1,漢字 \"q\"";

  private static String host;
  private static List<Integer> ports = new ArrayList<>();
  private static int checks;
  private static int failures;

  private interface Action {
    void run() throws Exception;
  }

  public static void main(String[] arguments) throws Exception {
    host = arguments[0];
    for (String port : arguments[1].split(",")) {
      ports.add(Integer.parseInt(port));
    }
    for (String part : Arrays.asList(arguments).subList(2, arguments.length)) {
      int before = failures;
      try {
        run(part);
      } catch (Exception e) {
        e.printStackTrace();
        failures++;
      }
      System.out.println("part " + part + (failures == before ? " ok" : " FAILED"));
    }
    System.out.println("checks " + checks + " failures " + failures);
    System.exit(failures == 0 ? 0 : 1);
  }

  private static void run(String part) throws Exception {
    switch (part) {
      case "session":
        schema();
        inserts();
        failing();
        queries();
        zones();
        break;
      case "leaders":
        leaders();
        break;
      case "pool":
        pool();
        break;
      case "big":
        big();
        break;
      case "jdbc":
        jdbc();
        jdbcResults();
        jdbcBatches();
        break;
      case "failover":
        failover();
        break;
      default:
        throw new IllegalArgumentException("no such part: " + part);
    }
  }

  // ------------------------------------------------------------------------------------------------ helpers

  private static void same(String what, Object expected, Object seen) {
    checks++;
    if (!String.valueOf(expected).equals(String.valueOf(seen))) {
      failures++;
      System.out.println("MISMATCH " + what + "\n  expected " + expected + "\n  seen     " + seen);
    }
  }

  /** The action must fail, and the exception's text must begin so. */
  private static void fails(String what, String text, Action action) {
    try {
      action.run();
      same(what, text, "no failure");
    } catch (Exception e) {
      String seen = String.valueOf(e.getMessage());
      same(what, text, seen.startsWith(text) ? text : e.getClass().getSimpleName() + " " + seen);
    }
  }

  private static Session open(int fetchSize, boolean leaders) throws IoTDBConnectionException {
    Session session =
        new Session(host, ports.get(0), "root", "root", fetchSize, java.time.ZoneId.of("UTC"), leaders);
    session.open();
    return session;
  }

  private static void clean(Session session, String group) throws Exception {
    try {
      session.deleteStorageGroup(group);
    } catch (StatementExecutionException e) {
      // It was not there.
    }
  }

  private static String cells(RowRecord row) {
    List<String> cells = new ArrayList<>();
    for (Field field : row.getFields()) {
      cells.add(field == null || field.getDataType() == null ? "null" : field.getStringValue());
    }
    return String.join(",", cells);
  }

  private static List<String> rows(SessionDataSet set, boolean times) throws Exception {
    List<String> rows = new ArrayList<>();
    while (set.hasNext()) {
      RowRecord row = set.next();
      rows.add((times ? row.getTimestamp() + ":" : "") + cells(row));
    }
    set.closeOperationHandle();
    return rows;
  }

  private static List<String> rows(Session session, String sql) throws Exception {
    return rows(session.executeQueryStatement(sql), true);
  }

  private static List<String> table(Session session, String sql) throws Exception {
    return rows(session.executeQueryStatement(sql), false);
  }

  private static Tablet tablet(String device, int rows, long first) {
    List<MeasurementSchema> schemas = new ArrayList<>();
    for (int i = 0; i < NAMES.size(); i++) {
      schemas.add(new MeasurementSchema(NAMES.get(i), TYPES.get(i)));
    }
    Tablet tablet = new Tablet(device, schemas, Math.max(rows, 1));
    for (int row = 0; row < rows; row++) {
      tablet.addTimestamp(row, first + row);
      tablet.addValue("b", row, row % 2 == 0);
      tablet.addValue("i", row, row - 1);
      tablet.addValue("l", row, (long) row << 33);
      tablet.addValue("f", row, row * 0.5f);
      tablet.addValue("d", row, row * 0.25);
      tablet.addValue("t", row, new Binary("é" + row));
    }
    tablet.rowSize = rows;
    return tablet;
  }

  private static String tabletRow(int row) {
    return (row % 2 == 0) + "," + (row - 1) + "," + ((long) row << 33) + "," + row * 0.5f + "," + row * 0.25 + ",é" + row;
  }

  // ------------------------------------------------------------------------------------------------ session

  private static void schema() throws Exception {
    Session session = open(5000, false);
    clean(session, "root.jschema");
    session.setStorageGroup("root.jschema");
    fails("storage group twice", "300: root.jschema has already been set", () -> session.setStorageGroup("root.jschema"));
    session.createTimeseries("root.jschema.d.s", TSDataType.INT64, TSEncoding.RLE, CompressionType.SNAPPY);
    fails("series twice", "300: Path [root.jschema.d.s] already exist",
        () -> session.createTimeseries("root.jschema.d.s", TSDataType.INT64, TSEncoding.RLE, CompressionType.SNAPPY));
    session.createTimeseries("root.jschema.d.v", TSDataType.FLOAT, TSEncoding.GORILLA, CompressionType.LZ4,
        Collections.singletonMap("max_point_number", "3"), Collections.singletonMap("unit", "C"),
        Collections.singletonMap("note", "a b"), "speed");
    session.createMultiTimeseries(
        Arrays.asList("root.jschema.d.m1", "root.jschema.d.m2"), Arrays.asList(TSDataType.TEXT, TSDataType.BOOLEAN),
        Arrays.asList(TSEncoding.PLAIN, TSEncoding.RLE), Arrays.asList(CompressionType.SNAPPY, CompressionType.UNCOMPRESSED),
        null, Arrays.asList(Collections.singletonMap("k", "1"), new HashMap<>()), null, Arrays.asList("first", "second"));
    session.createMultiTimeseries(
        Arrays.asList("root.jschema.e.m1"), Arrays.asList(TSDataType.DOUBLE), Arrays.asList(TSEncoding.TS_2DIFF),
        Arrays.asList(CompressionType.SNAPPY), null, null, null, null);
    List<String> series = table(session, "SHOW TIMESERIES root.jschema");
    Collections.sort(series);
    same("show timeseries", "[root.jschema.d.m1,first,root.jschema,TEXT,PLAIN,SNAPPY,{\"k\":\"1\"},null, "
        + "root.jschema.d.m2,second,root.jschema,BOOLEAN,RLE,UNCOMPRESSED,null,null, "
        + "root.jschema.d.s,null,root.jschema,INT64,RLE,SNAPPY,null,null, "
        + "root.jschema.d.v,speed,root.jschema,FLOAT,GORILLA,LZ4,{\"unit\":\"C\"},{\"note\":\"a b\"}, "
        + "root.jschema.e.m1,null,root.jschema,DOUBLE,TS_2DIFF,SNAPPY,null,null]", series);
    same("show columns", "[timeseries, alias, storage group, dataType, encoding, compression, tags, attributes]",
        session.executeQueryStatement("SHOW TIMESERIES root.jschema").getColumnNames());
    fails("multi with one there", "Path [root.jschema.e.m1] already exist",
        () -> session.createMultiTimeseries(
            Arrays.asList("root.jschema.e.m1", "root.jschema.e.m2"), Arrays.asList(TSDataType.DOUBLE, TSDataType.DOUBLE),
            Arrays.asList(TSEncoding.RLE, TSEncoding.RLE), Arrays.asList(CompressionType.SNAPPY, CompressionType.SNAPPY),
            null, null, null, null));
    same("the other was made", true, session.checkTimeseriesExists("root.jschema.e.m2"));
    same("exists by prefix", true, session.checkTimeseriesExists("root.jschema.e"));
    same("does not exist", false, session.checkTimeseriesExists("root.jschema.d.none"));
    same("nowhere", false, session.checkTimeseriesExists("root.nowhere.d.s"));
    session.deleteTimeseries("root.jschema.e.m2");
    same("gone", false, session.checkTimeseriesExists("root.jschema.e.m2"));
    session.deleteTimeseries(Arrays.asList("root.jschema.d.m1", "root.jschema.e.*"));
    same("left", "[root.jschema.d.m2, root.jschema.d.s, root.jschema.d.v]", names(session));
    fails("delete unknown", "Path [root.jschema.d.none] does not exist",
        () -> session.deleteTimeseries("root.jschema.d.none"));
    session.deleteStorageGroup("root.jschema");
    same("no group", false, session.checkTimeseriesExists("root.jschema.d.s"));
    fails("delete unknown group", "304: Path [root.jschema] does not exist",
        () -> session.deleteStorageGroup("root.jschema"));
    session.setStorageGroup("root.jschema.a");
    session.setStorageGroup("root.jschema.b");
    session.deleteStorageGroups(Arrays.asList("root.jschema.a", "root.jschema.b"));
    session.close();
  }

  private static List<String> names(Session session) throws Exception {
    List<String> names = new ArrayList<>();
    for (String row : table(session, "SHOW TIMESERIES root.jschema")) {
      names.add(row.substring(0, row.indexOf(',')));
    }
    Collections.sort(names);
    return names;
  }

  private static void inserts() throws Exception {
    Session session = open(5000, true);
    clean(session, "root.jins");
    String columns = "SELECT b,i,l,f,d,t FROM root.jins.";
    session.insertRecord("root.jins.d1", 1, NAMES, TYPES, VALUES);
    session.insertRecord("root.jins.d1", 2, NAMES, TYPES, VALUES.toArray());
    same("records", "[1:" + ROW + ", 2:" + ROW + "]", rows(session, columns + "d1"));
    session.insertRecord("root.jins.d2", 5, Arrays.asList("b", "f", "t"), Arrays.asList("true", "1.5", "'abc'"));
    same("string record", "[5:true,1.5,abc]", rows(session, "SELECT b,f,t FROM root.jins.d2"));
    session.insertRecords(Arrays.asList("root.jins.d3", "root.jins.d4"), Arrays.asList(-3L, 4L),
        Arrays.asList(NAMES, NAMES.subList(0, 2)), Arrays.asList(TYPES, TYPES.subList(0, 2)),
        Arrays.asList(VALUES, VALUES.subList(0, 2)));
    same("insertRecords", "[-3:" + ROW + "]", rows(session, columns + "d3"));
    same("insertRecords, other", "[4:true,-7]", rows(session, "SELECT b,i FROM root.jins.d4"));
    session.insertRecords(Arrays.asList("root.jins.d5", "root.jins.d5"), Arrays.asList(1L, 2L),
        Arrays.asList(Arrays.asList("x"), Arrays.asList("x", "y")),
        Arrays.asList(Arrays.asList("1"), Arrays.asList("2.5", "\"q\"")));
    same("string records", "[1:1.0,null, 2:2.5,q]", rows(session, "SELECT x,y FROM root.jins.d5"));
    session.insertRecordsOfOneDevice("root.jins.d6", new ArrayList<>(Arrays.asList(9L, 3L)),
        new ArrayList<>(Arrays.asList(NAMES, NAMES.subList(5, 6))),
        new ArrayList<>(Arrays.asList(TYPES, TYPES.subList(5, 6))),
        new ArrayList<>(Arrays.asList(VALUES, Arrays.<Object>asList(""))));
    same("one device", "[3:null,null,null,null,null,, 9:" + ROW + "]", rows(session, columns + "d6"));
    session.insertTablet(tablet("root.jins.d7", 20, 100));
    List<String> expected = new ArrayList<>();
    for (int row = 0; row < 20; row++) {
      expected.add((100 + row) + ":" + tabletRow(row));
    }
    same("tablet", expected, rows(session, columns + "d7"));
    Map<String, Tablet> tablets = new TreeMap<>();
    tablets.put("root.jins.d8", tablet("root.jins.d8", 2, 0));
    tablets.put("root.jins.d9", tablet("root.jins.d9", 1, 7));
    session.insertTablets(tablets, true);
    same("tablets", "[0:" + tabletRow(0) + ", 1:" + tabletRow(1) + "]", rows(session, columns + "d8"));
    same("tablets, other", "[7:" + tabletRow(0) + "]", rows(session, columns + "d9"));
    session.testInsertTablet(tablet("root.none.d", 3, 0));
    session.testInsertTablets(tablets);
    session.testInsertRecord("root.none.d", 1, NAMES, TYPES, VALUES);
    session.testInsertRecord("root.none.d", 1, Arrays.asList("x"), Arrays.asList("1"));
    same("tests store nothing", false, session.checkTimeseriesExists("root.none"));
    session.deleteData("root.jins.d7.i", 104);
    same("delete to", "[15]", table(session, "SELECT count(i) FROM root.jins.d7"));
    session.deleteData(Arrays.asList("root.jins.d7.l", "root.jins.d7.t"), 110, 114);
    same("delete range", "[15,15]", table(session, "SELECT count(l), count(t) FROM root.jins.d7"));
    session.deleteData(Arrays.asList("root.jins.d8.*"), 0);
    same("delete pattern", "[1:" + tabletRow(1) + "]", rows(session, columns + "d8"));
    session.deleteStorageGroup("root.jins");
    session.close();
  }

  private static void failing() throws Exception {
    Session session = open(5000, true);
    clean(session, "root.jbad");
    session.insertRecord("root.jbad.d", 1, NAMES, TYPES, VALUES);
    List<String> two = Arrays.asList("i", "l");
    List<TSDataType> wrong = Arrays.asList(TSDataType.INT32, TSDataType.INT32);
    fails("wrong type", "313: ", () -> session.insertRecord("root.jbad.d", 2, two, wrong, 5, 6));
    same("the good one stays", "[2:5,null]", rows(session, "SELECT i, l FROM root.jbad.d WHERE time = 2"));
    fails("wrong type in records", "failed to insert measurements [l]", () -> session.insertRecords(
        Arrays.asList("root.jbad.d", "root.jbad.d"), Arrays.asList(3L, 4L), Arrays.asList(two, NAMES.subList(1, 2)),
        Arrays.asList(wrong, TYPES.subList(1, 2)), Arrays.asList(Arrays.asList(8, 9), Arrays.asList((Object) 10))));
    same("the good ones stay", "[3:8, 4:10]", rows(session, "SELECT i FROM root.jbad.d WHERE time > 2"));
    Tablet bad = new Tablet("root.jbad.d", Arrays.asList(new MeasurementSchema("t", TSDataType.INT32)), 1);
    bad.addTimestamp(0, 9);
    bad.addValue("t", 0, 1);
    bad.rowSize = 1;
    fails("wrong type in tablet", "313: ", () -> session.insertTablet(bad));
    Map<String, Tablet> tablets = new TreeMap<>();
    tablets.put("root.jbad.d", bad);
    tablets.put("root.jbad.e", tablet("root.jbad.e", 1, 1));
    fails("wrong type in tablets", "failed to insert measurements [t]", () -> session.insertTablets(tablets));
    same("the good tablet stays", "[1:true]", rows(session, "SELECT b FROM root.jbad.e"));
    fails("bad path", "400: root..x is not a legal path", () -> session.insertRecord("root..x", 2, two, wrong, 5, 6));
    fails("bad sql", "401: Error occurred while parsing SQL to physical plan: ",
        () -> session.executeNonQueryStatement("nonsense"));
    fails("query as update", "400: Statement is a query statement.",
        () -> session.executeNonQueryStatement("SELECT * FROM root.jbad.d"));
    fails("update as query", "400: Statement is not a query statement.",
        () -> session.executeQueryStatement("DELETE FROM root.jbad.d.i"));
    Session stranger = new Session(host, ports.get(0), "root", "wrong");
    fails("password", "org.apache.iotdb.rpc.StatementExecutionException: 600: Authentication failed.", () -> stranger.open());
    session.deleteStorageGroup("root.jbad");
    session.close();
  }

  private static void queries() throws Exception {
    Session session = open(7, true);
    clean(session, "root.jq");
    session.setQueryTimeout(20_000);
    session.insertTablet(tablet("root.jq.d1", 50, 0));
    session.insertTablet(tablet("root.jq.d2", 3, 48));
    SessionDataSet set = session.executeQueryStatement("SELECT i, t FROM root.jq.*");
    same("names", "[Time, root.jq.d1.i, root.jq.d1.t, root.jq.d2.i, root.jq.d2.t]", sortedNames(set));
    same("types", "[INT64, INT32, INT32, TEXT, TEXT]", sortedTypes(set));
    same("fetch size 7", 51, rows(set, true).size());
    SessionDataSet again = session.executeQueryStatement("SELECT i, i AS x, t FROM root.jq.d1 WHERE time >= 20 AND i < 30");
    same("alias names", "[Time, root.jq.d1.i, x, root.jq.d1.t]", again.getColumnNames());
    again.setFetchSize(3);
    List<String> got = rows(again, true);
    same("alias rows", 11, got.size());
    same("alias first", "20:19,19,é20", got.get(0));
    SessionDataSet twice = session.executeQueryStatement("SELECT i, t, i FROM root.jq.d2 ORDER BY TIME DESC");
    same("doubled column", "[50:1,é2,1, 49:0,é1,0, 48:-1,é0,-1]", rows(twice, true));
    same("raw", "[48:47,-1, 49:48,0]", rows(session.executeRawDataQuery(
        Arrays.asList("root.jq.d1.i", "root.jq.d2.i"), 48, 50), true));
    same("aggregate", "[50,49,-1,1175.0]",
        table(session, "SELECT count(i), max_time(i), min_value(i), sum(i) FROM root.jq.d1"));
    same("windows", "[0:10, 10:10, 20:10]",
        rows(session, "SELECT count(i) FROM root.jq.d1 GROUP BY ([0, 30), 10ms)"));
    same("no series", "[]", rows(session, "SELECT nothing FROM root.jq.d1"));
    same("no rows", "[]", rows(session, "SELECT i FROM root.jq.d1 WHERE time > 1000"));
    same("last", "[49:root.jq.d1.i,48,INT32]", rows(session, "SELECT LAST i FROM root.jq.d1"));
    SessionDataSet devices = session.executeQueryStatement("SELECT i, f FROM root.jq.* WHERE time >= 49 ALIGN BY DEVICE");
    same("device names", "[Time, Device, i, f]", devices.getColumnNames());
    same("devices", "[49:root.jq.d1,48,24.5, 49:root.jq.d2,0,0.5, 50:root.jq.d2,1,1.0]", rows(devices, true));
    same("iterator", "49 48 é49", iterate(session));
    same("version", "[0.12.5]", table(session, "SHOW VERSION"));
    same("count", "[12]", table(session, "COUNT TIMESERIES root.jq"));
    same("devices", "[root.jq.d1, root.jq.d2]", table(session, "SHOW DEVICES root.jq"));
    same("groups", "[root.jq]", table(session, "SHOW STORAGE GROUP root.jq"));
    for (int i = 0; i < 50; i++) {
      session.executeQueryStatement("SELECT i FROM root.jq.d1").closeOperationHandle();
    }
    session.deleteStorageGroup("root.jq");
    session.close();
    session.close();
  }

  private static String iterate(Session session) throws Exception {
    SessionDataSet.DataIterator row = session.executeQueryStatement("SELECT i, t FROM root.jq.d1 WHERE time = 49").iterator();
    String text = row.next() ? row.getLong("Time") + " " + row.getInt("root.jq.d1.i") + " " + row.getString("root.jq.d1.t") : "";
    return row.next() ? text + " and more" : text;
  }

  private static List<String> sortedNames(SessionDataSet set) {
    List<String> names = new ArrayList<>(set.getColumnNames());
    Collections.sort(names);
    return names;
  }

  private static List<String> sortedTypes(SessionDataSet set) {
    List<String> types = new ArrayList<>();
    set.getColumnTypes().forEach(type -> types.add(type.toString()));
    Collections.sort(types.subList(1, types.size()));
    return types;
  }

  private static void zones() throws Exception {
    Session session = open(100, true);
    clean(session, "root.jz");
    same("zone", "UTC", session.getTimeZone());
    session.executeNonQueryStatement("INSERT INTO root.jz.d(timestamp, s) VALUES (2021-01-01T00:00:00, 1)");
    session.setTimeZone("+08:00");
    same("zone set", "+08:00", session.getTimeZone());
    session.executeNonQueryStatement("INSERT INTO root.jz.d(timestamp, s) VALUES (2021-01-01T00:00:00, 2)");
    session.setTimeZone("Asia/Shanghai");
    same("by name", "[1609430400000:2.0]", rows(session, "SELECT s FROM root.jz.d WHERE time = 2021-01-01T00:00:00"));
    same("zones", "[1609430400000:2.0, 1609459200000:1.0]", rows(session, "SELECT s FROM root.jz.d"));
    fails("zone unknown", "403: [SET_TIME_ZONE_ERROR] Exception occurred while setting time zone. ",
        () -> session.setTimeZone("bogus"));
    session.deleteStorageGroup("root.jz");
    session.close();
  }

  /** Devices that live on other nodes: the Session follows the hints, and all rows are there. */
  private static void leaders() throws Exception {
    // One session a node: whoever leads, two of the three learn of it.
    List<Session> sessions = new ArrayList<>();
    for (int port : ports) {
      Session one = new Session(host, port, "root", "root");
      one.open();
      sessions.add(one);
    }
    Session session = sessions.get(0);
    for (int group = 0; group < 6; group++) {
      clean(session, "root.jl" + group);
    }
    for (int round = 0; round < 20; round++) {
      session = sessions.get(round % sessions.size());
      for (int group = 0; group < 6; group++) {
        session.insertTablet(tablet("root.jl" + group + ".d", 5, round * 5L));
        session.insertRecord("root.jl" + group + ".e", round, NAMES, TYPES, VALUES);
        session.insertRecordsOfOneDevice("root.jl" + group + ".f", new ArrayList<>(Arrays.asList((long) round)),
            new ArrayList<>(Arrays.asList(NAMES)), new ArrayList<>(Arrays.asList(TYPES)), new ArrayList<>(Arrays.asList(VALUES)));
      }
      Map<String, Tablet> tablets = new TreeMap<>();
      List<String> devices = new ArrayList<>();
      for (int group = 0; group < 6; group++) {
        tablets.put("root.jl" + group + ".g", tablet("root.jl" + group + ".g", 2, round * 2L));
        devices.add("root.jl" + group + ".h");
      }
      session.insertTablets(tablets);
      session.insertRecords(devices, Collections.nCopies(6, (long) round), Collections.nCopies(6, NAMES),
          Collections.nCopies(6, TYPES), Collections.nCopies(6, VALUES));
    }
    for (int group = 0; group < 6; group++) {
      same("rows of group " + group, "[100,20,20,40,20]", table(session, String.format(
          "SELECT count(i) FROM root.jl%d.d, root.jl%d.e, root.jl%d.f, root.jl%d.g, root.jl%d.h", group, group, group, group, group)));
      session.deleteStorageGroup("root.jl" + group);
    }
    java.lang.reflect.Field field = Session.class.getDeclaredField("deviceIdToEndpoint");
    field.setAccessible(true);
    int learned = 0;
    for (Session one : sessions) {
      learned += ((Map<?, ?>) field.get(one)).size();
      one.close();
    }
    same("hints were learned", true, learned >= 18);
  }

  private static void pool() throws Exception {
    SessionPool pool = new SessionPool(host, ports.get(1 % ports.size()), "root", "root", 3);
    try {
      pool.deleteStorageGroup("root.jp");
    } catch (StatementExecutionException e) {
      // It was not there.
    }
    ExecutorService threads = Executors.newFixedThreadPool(8);
    List<Future<Integer>> futures = new ArrayList<>();
    for (int thread = 0; thread < 8; thread++) {
      String device = "root.jp.d" + thread;
      futures.add(threads.submit((Callable<Integer>) () -> {
        int seen = 0;
        for (int i = 0; i < 10; i++) {
          pool.insertTablet(tablet(device, 10, i * 10L));
          pool.insertRecord(device, 1000 + i, NAMES, TYPES, VALUES);
          SessionDataSetWrapper wrapper = pool.executeQueryStatement("SELECT i, t FROM " + device);
          for (seen = 0; wrapper.hasNext(); wrapper.next()) {
            seen++;
          }
          pool.closeResultSet(wrapper);
        }
        return seen;
      }));
    }
    for (Future<Integer> future : futures) {
      same("rows through the pool", 110, future.get());
    }
    threads.shutdown();
    same("exists", true, pool.checkTimeseriesExists("root.jp.d7.t"));
    fails("pool failure", "401: ", () -> pool.executeNonQueryStatement("nonsense"));
    pool.deleteStorageGroup("root.jp");
    pool.close();
  }

  private static void big() throws Exception {
    Session session = open(1000, true);
    clean(session, "root.jbig");
    int total = 200_000;
    for (int first = 0; first < total; first += 10_000) {
      session.insertTablet(tablet("root.jbig.d", 10_000, first), true);
    }
    for (int fetchSize : new int[] {1000, 5000, 300_000}) {
      session.setFetchSize(fetchSize);
      SessionDataSet set = session.executeQueryStatement("SELECT b,i,l,f,d,t FROM root.jbig.d");
      set.setFetchSize(fetchSize);
      long row = 0;
      String wrong = "";
      while (set.hasNext()) {
        RowRecord record = set.next();
        if (record.getTimestamp() != row || !cells(record).equals(tabletRow((int) (row % 10_000)))) {
          wrong = wrong.isEmpty() ? row + " is " + record : wrong;
        }
        row++;
      }
      same("big, wrong rows", "", wrong);
      same("big, rows", total, row);
      set.closeOperationHandle();
    }
    session.deleteStorageGroup("root.jbig");
    session.close();
  }

  /** Prints KILL PORT and goes on when a line arrives: the node is gone by then. */
  private static void failover() throws Exception {
    List<String> nodes = new ArrayList<>();
    for (int port : ports) {
      nodes.add(host + ":" + port);
    }
    List<Session> sessions = new ArrayList<>(); // each begins at an endpoint of its own choice
    for (int i = 0; i < 6; i++) {
      Session session = new Session(nodes, "root", "root");
      session.open();
      sessions.add(session);
    }
    Session single = open(5000, true);
    clean(single, "root.jf");
    for (int i = 0; i < 20; i++) {
      sessions.get(i % 6).insertTablet(tablet("root.jf.d", 10, i * 10L));
      single.insertRecord("root.jf.e", i, NAMES, TYPES, VALUES);
    }
    System.out.println("KILL " + ports.get(ports.size() - 1));
    System.in.read();
    long began = System.currentTimeMillis();
    int refused = 0;
    for (int i = 20; i < 60; i++) {
      boolean done = false;
      for (int attempt = 0; attempt < 20 && !done; attempt++) {
        try {
          sessions.get(i % 6).insertTablet(tablet("root.jf.d", 10, i * 10L));
          single.insertRecord("root.jf.e", i, NAMES, TYPES, VALUES);
          done = true;
        } catch (IoTDBConnectionException | StatementExecutionException e) {
          refused++;
          System.out.println("after the kill: " + e.getMessage());
          Thread.sleep(500);
        }
      }
      same("insert " + i + " after the kill", true, done);
    }
    System.out.println("after the kill: " + refused + " refusals, " + (System.currentTimeMillis() - began) + " ms");
    for (Session session : sessions) {
      same("all rows", "[600,60]", table(session, "SELECT count(i) FROM root.jf.d, root.jf.e"));
    }
    single.deleteStorageGroup("root.jf");
    for (Session session : sessions) {
      session.close();
    }
    single.close();
  }

  // ------------------------------------------------------------------------------------------------ JDBC

  private static Connection connect(String password) throws Exception {
    Class.forName("org.apache.iotdb.jdbc.IoTDBDriver");
    return DriverManager.getConnection("jdbc:iotdb://" + host + ":" + ports.get(0) + "/", "root", password);
  }

  private static void sql(Statement statement, String... texts) throws SQLException {
    for (String text : texts) {
      same(text, false, statement.execute(text));
    }
  }

  private static List<String> table(ResultSet set) throws SQLException {
    ResultSetMetaData meta = set.getMetaData();
    List<String> rows = new ArrayList<>();
    StringBuilder text = new StringBuilder();
    for (int i = 1; i <= meta.getColumnCount(); i++) {
      text.append(i == 1 ? "" : "|").append(meta.getColumnLabel(i));
    }
    rows.add(text.toString());
    while (set.next()) {
      text.setLength(0);
      for (int i = 1; i <= meta.getColumnCount(); i++) {
        text.append(i == 1 ? "" : "|").append(set.getString(i));
      }
      rows.add(text.toString());
    }
    set.close();
    return rows;
  }

  private static List<String> ask(Statement statement, String sql) throws SQLException {
    return table(statement.executeQuery(sql));
  }

  private static void jdbc() throws Exception {
    fails("password", "600: Authentication failed.", () -> connect("wrong"));
    try (Connection connection = connect("root"); Statement statement = connection.createStatement()) {
      try {
        statement.execute("DELETE STORAGE GROUP root.jdbc");
      } catch (SQLException e) {
        // It was not there.
      }
      sql(statement, "SET STORAGE GROUP TO root.jdbc",
          "CREATE TIMESERIES root.jdbc.d1.s WITH DATATYPE=INT32, ENCODING=RLE",
          "CREATE TIMESERIES root.jdbc.d1.t WITH DATATYPE=TEXT, ENCODING=PLAIN",
          "CREATE TIMESERIES root.jdbc.d2.s WITH DATATYPE=INT32, ENCODING=RLE");
      IoTDBConnection own = (IoTDBConnection) connection;
      own.setTimeZone("+08:00");
      same("zone", "+08:00", own.getTimeZone());
      fails("zone unknown", "", () -> own.setTimeZone("bogus"));
      own.setTimeZone("UTC");
      same("update", 0, statement.executeUpdate("INSERT INTO root.jdbc.d1(timestamp, s, t) VALUES (1, 10, 'one')"));
      sql(statement, "INSERT INTO root.jdbc.d1(timestamp, s) VALUES (2, 20)",
          "INSERT INTO root.jdbc.d2(timestamp, s) VALUES (2, 200)");
      try (PreparedStatement prepared = connection.prepareStatement(
          "INSERT INTO root.jdbc.d1(timestamp, s, t) VALUES (?, ?, ?)")) {
        prepared.setLong(1, 3);
        prepared.setInt(2, 30);
        prepared.setString(3, "three");
        prepared.execute();
        prepared.clearParameters();
      }
      try (PreparedStatement prepared = connection.prepareStatement("SELECT s, t FROM root.jdbc.d1 WHERE time >= ?")) {
        prepared.setLong(1, 2);
        same("prepared", "[Time|root.jdbc.d1.s|root.jdbc.d1.t, 2|20|null, 3|30|three]", table(prepared.executeQuery()));
      }
      statement.setQueryTimeout(30);
      same("timeout", 30, statement.getQueryTimeout());
      statement.cancel();
      fails("bad sql", "401: Error occurred while parsing SQL to physical plan: ", () -> statement.execute("nonsense"));
      fails("unknown", "", () -> statement.executeQuery("INSERT INTO root.jdbc.d1(timestamp, s) VALUES (2, 20)"));
      String json = ((IoTDBDatabaseMetadata) connection.getMetaData()).getMetadataInJson();
      same("heading", true, json.startsWith("===  Timeseries Tree  ===\n\n{"));
      same("json", true, json.contains("\"s\": {") && json.contains("\"DataType\": \"INT32\""));
      same("product", "IoTDB", connection.getMetaData().getDatabaseProductName());
    }
  }

  private static void jdbcResults() throws Exception {
    try (Connection connection = connect("root"); Statement statement = connection.createStatement()) {
      statement.setFetchSize(2);
      same("aligned", "[Time|root.jdbc.d1.s|root.jdbc.d2.s|root.jdbc.d1.t, 1|10|null|one, 2|20|200|null, 3|30|null|three]",
          ask(statement, "SELECT s, t FROM root.jdbc.d1, root.jdbc.d2"));
      // The driver never asks for a second block of such a result.
      same("not aligned", "[Timeroot.jdbc.d1.s|root.jdbc.d1.s|Timeroot.jdbc.d2.s|root.jdbc.d2.s, 1|10|2|200, 2|20|null|null]",
          ask(statement, "SELECT s FROM root.jdbc.d1, root.jdbc.d2 DISABLE ALIGN"));
      same("last", "[Time|timeseries|value|dataType, 3|root.jdbc.d1.s|30|INT32]",
          ask(statement, "SELECT LAST s FROM root.jdbc.d1"));
      same("by device", "[Time|Device|s|t, 1|root.jdbc.d1|10|one, 2|root.jdbc.d1|20|null, 3|root.jdbc.d1|30|three, "
          + "2|root.jdbc.d2|200|null]", ask(statement, "SELECT s, t FROM root.jdbc.d1, root.jdbc.d2 ALIGN BY DEVICE"));
      same("devices", "[devices, root.jdbc.d1, root.jdbc.d2]", ask(statement, "show devices root.jdbc"));
      same("devices with group", "[devices|storage group, root.jdbc.d1|root.jdbc, root.jdbc.d2|root.jdbc]",
          ask(statement, "show devices root.jdbc with storage group"));
      same("groups", "[storage group, root.jdbc]", ask(statement, "SHOW STORAGE GROUP root.jdbc"));
      same("children", "[child paths, root.jdbc.d1, root.jdbc.d2]", ask(statement, "SHOW CHILD PATHS root.jdbc"));
      same("ttl", "[storage group|ttl, root.jdbc|null]", ask(statement, "SHOW TTL ON root.jdbc"));
      same("count", "[count, 3]", ask(statement, "COUNT TIMESERIES root.jdbc"));
      same("levels", "[column|count, root.jdbc|3]", ask(statement, "COUNT TIMESERIES root.jdbc GROUP BY LEVEL=1"));
      same("version", "[        version, 0.12.5]", ask(statement, "SHOW VERSION"));
      same("nothing", "[Time|root.jdbc.d1.s]", ask(statement, "SELECT s FROM root.jdbc.d1 WHERE time > 100"));
      same("unknown series", "[Time]", ask(statement, "SELECT none FROM root.jdbc.d1"));
      same("process list", "[Time|queryId|statement]", ask(statement, "SHOW QUERY PROCESSLIST"));
      same("aggregate", "[count(root.jdbc.d1.s)|avg(root.jdbc.d1.s), 3|20.0]",
          ask(statement, "SELECT count(s), avg(s) FROM root.jdbc.d1"));
      same("by level", "[count(root.jdbc.*.s), 4]", ask(statement, "SELECT count(s) FROM root.jdbc.* GROUP BY LEVEL = 1"));
      same("fill", "[Time|root.jdbc.d2.s, 3|200]",
          ask(statement, "SELECT s FROM root.jdbc.d2 WHERE time = 3 FILL(int32[previous, 10ms])"));
      same("has a result", true, statement.execute("SELECT s, t FROM root.jdbc.d1 WHERE s = 10"));
      ResultSet set = statement.getResultSet();
      ResultSetMetaData meta = set.getMetaData();
      same("metadata", "3 Time TIMESTAMP root.jdbc.d1.s INTEGER VARCHAR", meta.getColumnCount() + " " + meta.getColumnName(1)
          + " " + typeName(meta, 1) + " " + meta.getColumnName(2) + " " + typeName(meta, 2) + " " + typeName(meta, 3));
      same("next", true, set.next());
      same("typed", "1 10 one", set.getTimestamp(1).getTime() + " " + set.getInt("root.jdbc.d1.s") + " " + set.getString(3));
      same("end", false, set.next());
      set.close();
    }
  }

  private static String typeName(ResultSetMetaData meta, int column) throws SQLException {
    switch (meta.getColumnType(column)) {
      case Types.TIMESTAMP:
        return "TIMESTAMP";
      case Types.INTEGER:
        return "INTEGER";
      case Types.VARCHAR:
        return "VARCHAR";
      default:
        return "type " + meta.getColumnType(column);
    }
  }

  private static void jdbcBatches() throws Exception {
    try (Connection connection = connect("root"); Statement statement = connection.createStatement()) {
      for (int i = 10; i < 13; i++) {
        statement.addBatch("INSERT INTO root.jdbc.d1(timestamp, s) VALUES (" + i + ", " + i + ")");
      }
      same("batch of inserts", "[200, 200, 200]", shape(statement));
      statement.clearBatch();
      statement.addBatch("CREATE TIMESERIES root.jdbc.d3.a WITH DATATYPE=INT32, ENCODING=RLE");
      statement.addBatch("CREATE TIMESERIES root.jdbc.d1.s WITH DATATYPE=INT32, ENCODING=RLE");
      statement.addBatch("INSERT INTO root.jdbc.d3(timestamp, a) VALUES (1, 1)");
      statement.addBatch("nonsense");
      statement.addBatch("INSERT INTO root.jdbc.d3(timestamp, a) VALUES (2, 'text')");
      statement.addBatch("SELECT a FROM root.jdbc.d3");
      statement.addBatch("DELETE FROM root.jdbc.d1.s WHERE time >= 10");
      same("batch with failures", "[200, 300, 200, 401, 313, 405, 200]", shape(statement));
      statement.clearBatch();
      same("good ones done", "[Time|root.jdbc.d3.a, 1|1]", ask(statement, "SELECT a FROM root.jdbc.d3"));
      same("deleted", "[count(root.jdbc.d1.s), 3]", ask(statement, "SELECT count(s) FROM root.jdbc.d1"));
      sql(statement, "DELETE STORAGE GROUP root.jdbc");
    }
  }

  private static String shape(Statement statement) throws SQLException {
    try {
      int[] codes = statement.executeBatch();
      return codes.length == 0 || codes.length == 1 ? "one answer " + Arrays.toString(codes) : Arrays.toString(codes);
    } catch (BatchUpdateException e) {
      return Arrays.toString(e.getUpdateCounts());
    }
  }
}
