// Everything the stock Go client 0.12.0 can do, against a running cluster: clients HOST PORT,PORT,...
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/apache/iotdb-client-go/client"
	"github.com/apache/iotdb-client-go/rpc"
)

var (
	checks   int
	failures int
	names    = []string{"b", "i", "l", "f", "d", "t"}
	types    = []client.TSDataType{client.BOOLEAN, client.INT32, client.INT64, client.FLOAT, client.DOUBLE, client.TEXT}
	values   = []interface{}{true, int32(-7), int64(1) << 40, float32(1.5), -0.1, "漢字"}
)

const row = "true,-7,1099511627776,1.5,-0.1,漢字"

func same(what string, expected, seen interface{}) {
	checks++
	if fmt.Sprint(expected) != fmt.Sprint(seen) {
		failures++
		fmt.Printf("MISMATCH %s\n  expected %v\n  seen     %v\n", what, expected, seen)
	}
}

func good(what string, status *rpc.TSStatus, err error) {
	if err == nil {
		err = client.VerifySuccess(status)
	}
	same(what, nil, err)
}

// bad checks that the status has the code, and that the client's own reading of it is an error.
func bad(what string, code int, status *rpc.TSStatus, err error) {
	if err != nil {
		same(what, code, err)
		return
	}
	same(what, code, status.GetCode())
	same(what+": an error", true, client.VerifySuccess(status) != nil)
}

// rows reads a result to its end: "time:cell,cell".
func rows(set *client.SessionDataSet, err error) []string {
	if err != nil {
		return []string{err.Error()}
	}
	found := []string{}
	for {
		more, err := set.Next()
		if err != nil {
			return append(found, err.Error())
		}
		if !more {
			break
		}
		record, err := set.GetRowRecord()
		if err != nil {
			return append(found, err.Error())
		}
		cells := []string{}
		for _, field := range record.GetFields() {
			if field.IsNull() {
				cells = append(cells, "null")
			} else {
				cells = append(cells, fmt.Sprint(field.GetValue()))
			}
		}
		text := strings.Join(cells, ",")
		if !set.IsIgnoreTimeStamp() {
			text = fmt.Sprintf("%d:%s", record.GetTimestamp(), text)
		}
		found = append(found, text)
	}
	// The client names no statement, which the server must answer with 501; an error here says nothing.
	_ = set.Close()
	return found
}

func tablet(device string, count int, first int64) *client.Tablet {
	schemas := []*client.MeasurementSchema{}
	for i, name := range names {
		schemas = append(schemas, &client.MeasurementSchema{Measurement: name, DataType: types[i],
			Encoding: client.PLAIN, Compressor: client.SNAPPY})
	}
	made, err := client.NewTablet(device, schemas, count)
	same("tablet", nil, err)
	for r := 0; r < count; r++ {
		made.SetTimestamp(first+int64(r), r)
		for c, value := range values {
			same("cell", nil, made.SetValueAt(value, c, r))
		}
	}
	return made
}

func query(session *client.Session, sql string) []string {
	return rows(session.ExecuteQueryStatement(sql, 20_000))
}

func schema(session *client.Session) {
	status, err := session.SetStorageGroup("root.go")
	good("storage group", status, err)
	status, err = session.SetStorageGroup("root.go")
	bad("storage group twice", 300, status, err)
	status, err = session.CreateTimeseries("root.go.s.v", client.FLOAT, client.GORILLA, client.SNAPPY,
		map[string]string{"note": "x"}, map[string]string{"unit": "C"})
	good("series", status, err)
	status, err = session.CreateMultiTimeseries([]string{"root.go.s.m1", "root.go.s.m2"},
		[]client.TSDataType{client.TEXT, client.INT64}, []client.TSEncoding{client.PLAIN, client.RLE},
		[]client.TSCompressionType{client.SNAPPY, client.UNCOMPRESSED})
	good("multi", status, err)
	same("show timeseries", "[root.go.s.v,null,root.go,FLOAT,GORILLA,SNAPPY,{\"unit\":\"C\"},{\"note\":\"x\"}]",
		query(session, "SHOW TIMESERIES root.go.s.v"))
	status, err = session.DeleteTimeseries([]string{"root.go.s.m1", "root.go.s.m2"})
	good("delete series", status, err)
	status, err = session.DeleteTimeseries([]string{"root.go.s.m1"})
	bad("delete unknown", 506, status, err)
	same("count", "[1]", query(session, "COUNT TIMESERIES root.go"))
}

func inserts(session *client.Session) {
	status, err := session.InsertRecord("root.go.d1", names, types, values, 1)
	good("record", status, err)
	status, err = session.InsertStringRecord("root.go.d2", []string{"b", "f", "t"}, []string{"true", "1.5", "'abc'"}, 5)
	good("string record", status, err)
	same("string record", "[5:true,1.5,abc]", query(session, "SELECT b,f,t FROM root.go.d2"))
	status, err = session.InsertRecords([]string{"root.go.d1", "root.go.d3"}, [][]string{names, names},
		[][]client.TSDataType{types, types}, [][]interface{}{values, values}, []int64{2, -3})
	good("records", status, err)
	status, err = session.InsertRecordsOfOneDevice("root.go.d1", []int64{4, 3}, [][]string{names, names},
		[][]client.TSDataType{types, types}, [][]interface{}{values, values}, false)
	good("one device", status, err)
	same("records", fmt.Sprintf("[1:%[1]s 2:%[1]s 3:%[1]s 4:%[1]s]", row), query(session, "SELECT b,i,l,f,d,t FROM root.go.d1"))
	status, err = session.InsertTablet(tablet("root.go.d4", 3000, 0), false)
	good("tablet", status, err)
	found := query(session, "SELECT b,i,l,f,d,t FROM root.go.d4")
	same("tablet", 3000, len(found))
	same("its last row", "2999:"+row, found[len(found)-1])
	status, err = session.InsertTablets([]*client.Tablet{tablet("root.go.d5", 2, 0), tablet("root.go.d6", 1, 9)}, true)
	good("tablets", status, err)
	same("tablets", fmt.Sprintf("[9:%s]", row), query(session, "SELECT b,i,l,f,d,t FROM root.go.d6"))
	status, err = session.DeleteData([]string{"root.go.d4.i", "root.go.d4.t"}, 0, 2989)
	good("delete data", status, err)
	same("deleted", "[10,10,3000]", query(session, "SELECT count(i), count(t), count(b) FROM root.go.d4"))
	wrong := []client.TSDataType{client.INT32}
	status, err = session.InsertRecord("root.go.d1", []string{"l"}, wrong, []interface{}{int32(1)}, 9)
	bad("wrong type", 313, status, err)
	status, err = session.InsertRecords([]string{"root.go.d1", "root.go.d1"}, [][]string{{"l"}, {"i"}},
		[][]client.TSDataType{wrong, wrong}, [][]interface{}{{int32(1)}, {int32(2)}}, []int64{9, 10})
	bad("wrong type in records", 506, status, err)
	same("sub statuses", "[313 200]", codes(status))
}

func codes(status *rpc.TSStatus) []int32 {
	found := []int32{}
	for _, one := range status.GetSubStatus() {
		found = append(found, one.GetCode())
	}
	return found
}

// queries asks nothing that fails: this client's query calls panic on any failure, whatever the server.
func queries(session *client.Session) {
	set, err := session.ExecuteStatement("SELECT i, t, i AS x FROM root.go.d1 WHERE time <= 2")
	same("execute", nil, err)
	same("names", "[root.go.d1.i root.go.d1.t x]", set.GetColumnNames())
	same("execute", "[1:-7,漢字,-7 2:-7,漢字,-7]", rows(set, err))
	same("raw", "[2:-7 3:-7]", rows(session.ExecuteRawDataQuery([]string{"root.go.d1.i"}, 2, 4)))
	same("aggregate", "[5,10]", query(session, "SELECT count(i), max_time(i) FROM root.go.d1"))
	same("windows", "[0:1 2:2 4:1]", query(session, "SELECT count(i) FROM root.go.d1 GROUP BY ([0, 6), 2ms)"))
	same("last", "[10:root.go.d1.i,2,INT32]", query(session, "SELECT LAST i FROM root.go.d1"))
	same("by device", "[1:root.go.d1,-7]", query(session, "SELECT i FROM root.go.d1 WHERE time = 1 ALIGN BY DEVICE"))
	same("nothing", "[]", query(session, "SELECT i FROM root.go.d1 WHERE time > 100"))
	same("devices", "[root.go.d1 root.go.d2]", query(session, "SHOW DEVICES root.go LIMIT 2")[:2])
	same("version", "[0.12.5]", query(session, "SHOW VERSION"))
	_, err = session.ExecuteUpdateStatement("INSERT INTO root.go.d7(timestamp, s) VALUES (1, 2)")
	same("update", nil, err)
	same("update", "[1:2]", query(session, "SELECT s FROM root.go.d7"))
	status, err := session.ExecuteBatchStatement([]string{"INSERT INTO root.go.d8(timestamp, s) VALUES (1, 2)",
		"INSERT INTO root.go.d8(timestamp, s) VALUES (2, 3)"})
	good("batch", status, err)
	status, err = session.ExecuteBatchStatement([]string{"INSERT INTO root.go.d8(timestamp, s) VALUES (3, 4)", "nonsense",
		"SELECT s FROM root.go.d8", "INSERT INTO root.go.d8(timestamp, s) VALUES (4, 5)"})
	bad("batch with failures", 506, status, err)
	same("its sub statuses", "[200 401 405 200]", codes(status))
	same("the good ones", "[4]", query(session, "SELECT count(s) FROM root.go.d8"))
}

func zones(session *client.Session) {
	zone, err := session.GetTimeZone()
	same("zone", "Asia/Shanghai <nil>", fmt.Sprint(zone, " ", err))
	status, err := session.SetTimeZone("+0200")
	good("zone set", status, err)
	zone, _ = session.GetTimeZone()
	same("its text", "+02:00", zone)
	status, err = session.SetTimeZone("bogus")
	bad("zone unknown", 403, status, err)
}

func main() {
	host, ports := os.Args[1], strings.Split(os.Args[2], ",")
	for _, compact := range []bool{false, true} {
		for _, port := range ports {
			session := client.NewSession(&client.Config{Host: host, Port: port, UserName: "root", Password: "root",
				TimeZone: "Asia/Shanghai"})
			if err := session.Open(compact, 0); err != nil {
				fmt.Println("open:", err)
				os.Exit(1)
			}
			zones(session)
			session.DeleteStorageGroup("root.go")
			schema(session)
			inserts(session)
			queries(session)
			status, err := session.DeleteStorageGroups("root.go")
			good("end", status, err)
			status, err = session.Close()
			same("close", nil, err)
		}
	}
	fmt.Println("checks", checks, "failures", failures)
	if failures > 0 {
		os.Exit(1)
	}
}
