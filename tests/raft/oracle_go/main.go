// Answers directives of the interaction format with what etcd's own harness prints.
//
// Standard input holds one directive a line; where a directive has input lines, they follow a '|'. The line
// "reset [heartbeat-tick=N]" begins a new environment. Each answer is the directive, "----", the text and an empty line.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/rafttest"
)

const electionTick = 1000 // far away, because the jitter of elections cannot be seeded

func newEnvironment(heartbeatTick int) *rafttest.InteractionEnv {
	return rafttest.NewInteractionEnv(&rafttest.InteractionOpts{
		OnConfig: func(config *raft.Config) {
			config.ElectionTick = electionTick
			config.HeartbeatTick = heartbeatTick
		},
		SetRandomizedElectionTimeout: func(node *raft.RawNode, timeout int) {
			core := reflect.ValueOf(node).Elem().FieldByName("raft").Elem()
			field := core.FieldByName("randomizedElectionTimeout")
			*(*int)(unsafe.Pointer(field.UnsafeAddr())) = timeout
		},
	})
}

// answer survives a panic of the core and a fatal complaint of the harness.
func answer(environment *rafttest.InteractionEnv, data datadriven.TestData) string {
	result := make(chan string, 1)
	go func() {
		text := "panic"
		defer func() {
			if problem := recover(); problem != nil {
				fmt.Fprintln(os.Stderr, "panic:", problem)
			}
			result <- text
		}()
		text = environment.Handle(&testing.T{}, data)
	}()
	return strings.TrimRight(<-result, "\n")
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	environment := newEnvironment(1)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "reset") {
			heartbeatTick := 1
			fmt.Sscanf(line, "reset heartbeat-tick=%d", &heartbeatTick)
			environment = newEnvironment(heartbeatTick)
			fmt.Fprintln(out, "=== reset")
			continue
		}
		directive, input, _ := strings.Cut(line, "|")
		command, arguments, err := datadriven.ParseLine(directive)
		if err != nil {
			fmt.Fprintln(os.Stderr, line, err)
			os.Exit(1)
		}
		data := datadriven.TestData{Cmd: command, CmdArgs: arguments, Input: input}
		fmt.Fprintf(out, "%s\n----\n%s\n\n", line, answer(environment, data))
	}
}
