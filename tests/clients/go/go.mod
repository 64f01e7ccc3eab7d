module clients

go 1.21

require github.com/apache/iotdb-client-go v0.12.0

require github.com/apache/thrift v0.13.0 // indirect
