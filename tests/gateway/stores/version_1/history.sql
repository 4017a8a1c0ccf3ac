BEGIN TRANSACTION;
CREATE TABLE runs(
      number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
      token TEXT NOT NULL, asked TEXT NOT NULL, upstream TEXT NOT NULL, model TEXT NOT NULL,
      format TEXT NOT NULL, streamed INTEGER NOT NULL, outcome TEXT NOT NULL, code TEXT NOT NULL,
      attempts INTEGER NOT NULL, began REAL NOT NULL, ended REAL NOT NULL, queued_s REAL NOT NULL,
      first_output_s REAL, request_bytes INTEGER NOT NULL, answer_bytes INTEGER NOT NULL,
      input INTEGER, output INTEGER, cached INTEGER, reasoning INTEGER
    );
INSERT INTO "runs" VALUES(1,'run_kept','0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f','laptop','small','box','small-q4','chat',1,'completed','',1,4000000000.0,4000000002.5,0.25,0.5,300,2000,10,20,4,NULL);
COMMIT;
PRAGMA user_version=1;
