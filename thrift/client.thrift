// The client service of the 0.12 line. What bears the mark 0.13 came with that release: such fields are read and ignored,
// such methods are answered with code 703.

enum TSProtocolVersion {
  IOTDB_SERVICE_PROTOCOL_V1 = 0,
  IOTDB_SERVICE_PROTOCOL_V2 = 1,
  IOTDB_SERVICE_PROTOCOL_V3 = 2,
}

struct EndPoint {
  1: required string ip;
  2: required i32 port;
}

struct TSStatus {
  1: required i32 code;
  2: optional string message;
  3: optional list<TSStatus> subStatus;
  4: optional EndPoint redirectNode;
}

struct TSQueryDataSet {
  1: required binary time;
  2: required list<binary> valueList;
  3: required list<binary> bitmapList;
}

struct TSQueryNonAlignDataSet {
  1: required list<binary> timeList;
  2: required list<binary> valueList;
}

struct TSTracingInfo {  // 0.13
  1: required list<string> activityList;
  2: required list<i64> elapsedTimeList;
  3: optional i32 seriesPathNum;
  4: optional i32 seqFileNum;
  5: optional i32 unSeqFileNum;
  6: optional i32 sequenceChunkNum;
  7: optional i64 sequenceChunkPointNum;
  8: optional i32 unsequenceChunkNum;
  9: optional i64 unsequenceChunkPointNum;
  10: optional i32 totalPageNum;
  11: optional i32 overlappedPageNum;
}

struct TSExecuteStatementResp {
  1: required TSStatus status;
  2: optional i64 queryId;
  3: optional list<string> columns;
  4: optional string operationType;
  5: optional bool ignoreTimeStamp;
  6: optional list<string> dataTypeList;
  7: optional TSQueryDataSet queryDataSet;
  8: optional TSQueryNonAlignDataSet nonAlignQueryDataSet;
  9: optional map<string, i32> columnNameIndexMap;
  10: optional list<string> sgColumns;  // 0.13
  11: optional list<byte> aliasColumns;  // 0.13
  12: optional TSTracingInfo tracingInfo;  // 0.13
}

struct TSFetchResultsResp {
  1: required TSStatus status;
  2: required bool hasResultSet;
  3: required bool isAlign;
  4: optional TSQueryDataSet queryDataSet;
  5: optional TSQueryNonAlignDataSet nonAlignQueryDataSet;
}

struct TSFetchMetadataResp {
  1: required TSStatus status;
  2: optional string metadataInJson;
  3: optional list<string> columnsList;
  4: optional string dataType;
}

struct TSOpenSessionReq {
  1: required TSProtocolVersion client_protocol = TSProtocolVersion.IOTDB_SERVICE_PROTOCOL_V3;
  2: required string zoneId;
  3: optional string username;
  4: optional string password;
  5: optional map<string, string> configuration;
}

struct TSOpenSessionResp {
  1: required TSStatus status;
  2: required TSProtocolVersion serverProtocolVersion = TSProtocolVersion.IOTDB_SERVICE_PROTOCOL_V1;
  3: optional i64 sessionId;
  4: optional map<string, string> configuration;
}

struct TSCloseSessionReq {
  1: required i64 sessionId;
}

struct TSGetTimeZoneResp {
  1: required TSStatus status;
  2: required string timeZone;
}

struct TSSetTimeZoneReq {
  1: required i64 sessionId;
  2: required string timeZone;
}

struct ServerProperties {
  1: required string version;
  2: required list<string> supportedTimeAggregationOperations;
  3: required string timestampPrecision;
  4: i32 maxConcurrentClientNum;  // 0.13
  5: optional string watermarkSecretKey;  // 0.13
  6: optional string watermarkBitString;  // 0.13
  7: optional i32 watermarkParamMarkRate;  // 0.13
  8: optional i32 watermarkParamMaxRightBit;  // 0.13
  9: optional i32 thriftMaxFrameSize;  // 0.13
  10: optional bool isReadOnly;  // 0.13
}

struct TSExecuteStatementReq {
  1: required i64 sessionId;
  2: required string statement;
  3: required i64 statementId;
  4: optional i32 fetchSize;
  5: optional i64 timeout;
  6: optional bool enableRedirectQuery;
  7: optional bool jdbcQuery;  // 0.13
}

struct TSExecuteBatchStatementReq {
  1: required i64 sessionId;
  2: required list<string> statements;
}

struct TSGetOperationStatusReq {
  1: required i64 sessionId;
  2: required i64 queryId;
}

struct TSCancelOperationReq {
  1: required i64 sessionId;
  2: required i64 queryId;
}

struct TSCloseOperationReq {
  1: required i64 sessionId;
  2: optional i64 queryId;
  3: optional i64 statementId;
}

struct TSFetchResultsReq {
  1: required i64 sessionId;
  2: required string statement;
  3: required i32 fetchSize;
  4: required i64 queryId;
  5: required bool isAlign;
  6: optional i64 timeout;
}

struct TSFetchMetadataReq {
  1: required i64 sessionId;
  2: required string type;
  3: optional string columnPath;
}

struct TSRawDataQueryReq {
  1: required i64 sessionId;
  2: required list<string> paths;
  3: optional i32 fetchSize;
  4: required i64 startTime;
  5: required i64 endTime;
  6: required i64 statementId;
  7: optional bool enableRedirectQuery;
  8: optional bool jdbcQuery;  // 0.13
}

struct TSLastDataQueryReq {  // 0.13
  1: required i64 sessionId;
  2: required list<string> paths;
  3: optional i32 fetchSize;
  4: required i64 time;
  5: required i64 statementId;
  6: optional bool enableRedirectQuery;
  7: optional bool jdbcQuery;
}

struct TSInsertRecordReq {
  1: required i64 sessionId;
  2: required string deviceId;
  3: required list<string> measurements;
  4: required binary values;
  5: required i64 timestamp;
  6: optional bool isAligned;  // 0.13
}

struct TSInsertStringRecordReq {
  1: required i64 sessionId;
  2: required string deviceId;
  3: required list<string> measurements;
  4: required list<string> values;
  5: required i64 timestamp;
  6: optional bool isAligned;  // 0.13
}

struct TSInsertTabletReq {
  1: required i64 sessionId;
  2: required string deviceId;
  3: required list<string> measurements;
  4: required binary values;
  5: required binary timestamps;
  6: required list<i32> types;
  7: required i32 size;
  8: optional bool isAligned;  // 0.13
}

struct TSInsertTabletsReq {
  1: required i64 sessionId;
  2: required list<string> deviceIds;
  3: required list<list<string>> measurementsList;
  4: required list<binary> valuesList;
  5: required list<binary> timestampsList;
  6: required list<list<i32>> typesList;
  7: required list<i32> sizeList;
  8: optional bool isAligned;  // 0.13
}

struct TSInsertRecordsReq {
  1: required i64 sessionId;
  2: required list<string> deviceIds;
  3: required list<list<string>> measurementsList;
  4: required list<binary> valuesList;
  5: required list<i64> timestamps;
  6: optional bool isAligned;  // 0.13
}

struct TSInsertRecordsOfOneDeviceReq {
  1: required i64 sessionId;
  2: required string deviceId;
  3: required list<list<string>> measurementsList;
  4: required list<binary> valuesList;
  5: required list<i64> timestamps;
  6: optional bool isAligned;  // 0.13
}

struct TSInsertStringRecordsOfOneDeviceReq {  // 0.13
  1: required i64 sessionId;
  2: required string prefixPath;
  3: required list<list<string>> measurementsList;
  4: required list<list<string>> valuesList;
  5: required list<i64> timestamps;
  6: optional bool isAligned;
}

struct TSInsertStringRecordsReq {
  1: required i64 sessionId;
  2: required list<string> deviceIds;
  3: required list<list<string>> measurementsList;
  4: required list<list<string>> valuesList;
  5: required list<i64> timestamps;
  6: optional bool isAligned;  // 0.13
}

struct TSDeleteDataReq {
  1: required i64 sessionId;
  2: required list<string> paths;
  3: required i64 startTime;
  4: required i64 endTime;
}

struct TSCreateTimeseriesReq {
  1: required i64 sessionId;
  2: required string path;
  3: required i32 dataType;
  4: required i32 encoding;
  5: required i32 compressor;
  6: optional map<string, string> props;
  7: optional map<string, string> tags;
  8: optional map<string, string> attributes;
  9: optional string measurementAlias;
}

struct TSCreateAlignedTimeseriesReq {  // 0.13
  1: required i64 sessionId;
  2: required string prefixPath;
  3: required list<string> measurements;
  4: required list<i32> dataTypes;
  5: required list<i32> encodings;
  6: required list<i32> compressors;
  7: optional list<string> measurementAlias;
}

struct TSCreateMultiTimeseriesReq {
  1: required i64 sessionId;
  2: required list<string> paths;
  3: required list<i32> dataTypes;
  4: required list<i32> encodings;
  5: required list<i32> compressors;
  6: optional list<map<string, string>> propsList;
  7: optional list<map<string, string>> tagsList;
  8: optional list<map<string, string>> attributesList;
  9: optional list<string> measurementAliasList;
}

struct TSSetSchemaTemplateReq {
  1: required i64 sessionId;
  2: required string templateName;
  3: required string prefixPath;
}

// Field 3 is a list in 0.12 and bytes in 0.13: the fields of 0.12, none of them required, so that both can be told apart.
struct TSCreateSchemaTemplateReq {
  1: required i64 sessionId;
  2: required string name;
  3: optional list<string> schemaNames;
  4: optional list<list<string>> measurements;
  5: optional list<list<i32>> dataTypes;
  6: optional list<list<i32>> encodings;
  7: optional list<i32> compressors;
}

struct TSAppendSchemaTemplateReq {  // 0.13
  1: required i64 sessionId;
  2: required string name;
  3: required bool isAligned;
  4: required list<string> measurements;
  5: required list<i32> dataTypes;
  6: required list<i32> encodings;
  7: required list<i32> compressors;
}

struct TSPruneSchemaTemplateReq {  // 0.13
  1: required i64 sessionId;
  2: required string name;
  3: required string path;
}

struct TSQueryTemplateReq {  // 0.13
  1: required i64 sessionId;
  2: required string name;
  3: required i32 queryType;
  4: optional string measurement;
}

struct TSQueryTemplateResp {  // 0.13
  1: required TSStatus status;
  2: required i32 queryType;
  3: optional bool result;
  4: optional i32 count;
  5: optional list<string> measurements;
}

struct TSUnsetSchemaTemplateReq {  // 0.13
  1: required i64 sessionId;
  2: required string prefixPath;
  3: required string templateName;
}

struct TSDropSchemaTemplateReq {  // 0.13
  1: required i64 sessionId;
  2: required string templateName;
}

service TSIService {
  TSOpenSessionResp openSession(1: TSOpenSessionReq req);
  TSStatus closeSession(1: TSCloseSessionReq req);
  TSExecuteStatementResp executeStatement(1: TSExecuteStatementReq req);
  TSStatus executeBatchStatement(1: TSExecuteBatchStatementReq req);
  TSExecuteStatementResp executeQueryStatement(1: TSExecuteStatementReq req);
  TSExecuteStatementResp executeUpdateStatement(1: TSExecuteStatementReq req);
  TSFetchResultsResp fetchResults(1: TSFetchResultsReq req);
  TSFetchMetadataResp fetchMetadata(1: TSFetchMetadataReq req);
  TSStatus cancelOperation(1: TSCancelOperationReq req);
  TSStatus closeOperation(1: TSCloseOperationReq req);
  TSGetTimeZoneResp getTimeZone(1: i64 sessionId);
  TSStatus setTimeZone(1: TSSetTimeZoneReq req);
  ServerProperties getProperties();
  TSStatus setStorageGroup(1: i64 sessionId, 2: string storageGroup);
  TSStatus createTimeseries(1: TSCreateTimeseriesReq req);
  TSStatus createAlignedTimeseries(1: TSCreateAlignedTimeseriesReq req);  // 0.13
  TSStatus createMultiTimeseries(1: TSCreateMultiTimeseriesReq req);
  TSStatus deleteTimeseries(1: i64 sessionId, 2: list<string> path);
  TSStatus deleteStorageGroups(1: i64 sessionId, 2: list<string> storageGroup);
  TSStatus insertRecord(1: TSInsertRecordReq req);
  TSStatus insertStringRecord(1: TSInsertStringRecordReq req);
  TSStatus insertTablet(1: TSInsertTabletReq req);
  TSStatus insertTablets(1: TSInsertTabletsReq req);
  TSStatus insertRecords(1: TSInsertRecordsReq req);
  TSStatus insertRecordsOfOneDevice(1: TSInsertRecordsOfOneDeviceReq req);
  TSStatus insertStringRecordsOfOneDevice(1: TSInsertStringRecordsOfOneDeviceReq req);  // 0.13
  TSStatus insertStringRecords(1: TSInsertStringRecordsReq req);
  TSStatus testInsertTablet(1: TSInsertTabletReq req);
  TSStatus testInsertTablets(1: TSInsertTabletsReq req);
  TSStatus testInsertRecord(1: TSInsertRecordReq req);
  TSStatus testInsertStringRecord(1: TSInsertStringRecordReq req);
  TSStatus testInsertRecords(1: TSInsertRecordsReq req);
  TSStatus testInsertRecordsOfOneDevice(1: TSInsertRecordsOfOneDeviceReq req);
  TSStatus testInsertStringRecords(1: TSInsertStringRecordsReq req);
  TSStatus deleteData(1: TSDeleteDataReq req);
  TSExecuteStatementResp executeRawDataQuery(1: TSRawDataQueryReq req);
  TSExecuteStatementResp executeLastDataQuery(1: TSLastDataQueryReq req);  // 0.13
  i64 requestStatementId(1: i64 sessionId);
  TSStatus createSchemaTemplate(1: TSCreateSchemaTemplateReq req);
  TSStatus setSchemaTemplate(1: TSSetSchemaTemplateReq req);
  TSStatus appendSchemaTemplate(1: TSAppendSchemaTemplateReq req);  // 0.13
  TSStatus pruneSchemaTemplate(1: TSPruneSchemaTemplateReq req);  // 0.13
  TSQueryTemplateResp querySchemaTemplate(1: TSQueryTemplateReq req);  // 0.13
  TSStatus unsetSchemaTemplate(1: TSUnsetSchemaTemplateReq req);  // 0.13
  TSStatus dropSchemaTemplate(1: TSDropSchemaTemplateReq req);  // 0.13
}
